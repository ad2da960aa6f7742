"""Words that generated prompts are made of. Each list is filtered to what a model's tokenizer can express."""

from __future__ import annotations


def _split(text: str, by: str | None = None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(by))


NAMES = _split(
    """
    Aaron Abigail Adam Alan Alexander Alice Amanda Amy Andrea Andrew Angela Ann Anna Anne Anthony Arthur Ashley
    Barbara Benjamin Betty Bob Brandon Brenda Brian Bruce Carl Carol Carolyn Catherine Charles Charlotte Cheryl
    Christina Christine Christopher Cynthia Daniel Danielle David Deborah Debra Denise Dennis Diana Diane Donald
    Donna Dorothy Douglas Edward Elizabeth Emily Emma Eric Ethan Evelyn Frances Frank Gabriel Gary George Gloria
    Grace Gregory Hannah Harold Heather Helen Henry Isabella Jack Jacob James Jane Janet Janice Jason Jean Jeffrey
    Jennifer Jeremy Jerry Jessica Joan John Jonathan Joseph Joshua Joyce Judith Judy Julia Julie Justin Karen Kate
    Katherine Kathleen Kathryn Keith Kelly Kenneth Kevin Kimberly Kyle Larry Laura Lauren Lawrence Linda Lisa Logan
    Louis Lucy Luke Margaret Maria Marilyn Mark Martha Martin Mary Matthew Megan Melissa Michael Michelle Nancy
    Natalie Nathan Nicholas Nicole Noah Oliver Olivia Pamela Patricia Patrick Paul Peter Philip Rachel Raymond
    Rebecca Richard Robert Roger Ronald Ruth Ryan Samantha Samuel Sandra Sara Sarah Scott Sean Sharon Shirley Simon
    Sophia Stephanie Stephen Steven Susan Teresa Terry Theresa Thomas Timothy Tom Tyler Victoria Walter Wayne
    William
    """
)
PLACES = _split(
    """
    shops market park school station beach garden hospital
    """
)
OBJECTS = _split(
    """
    bag book drink basket letter map coat
    """
)
EVENTS = _split(
    """
    war battle siege campaign conflict expedition journey voyage reign rebellion strike festival project contract
    construction crisis drought famine epidemic trial debate study experiment search tour exhibition mission program
    investigation negotiation occupation revolution migration operation blockade alliance struggle
    """
)

# Occupations by the pronoun that English text mostly gives them; the point of the task is the model's bias, not ours.
MOSTLY_SHE = _split(
    """
    nurse secretary maid housekeeper dancer teacher librarian receptionist nanny model assistant therapist designer
    stylist midwife actress counselor hostess ballerina singer babysitter cleaner florist waitress decorator
    dietitian volunteer caregiver hairdresser typist seamstress tutor paralegal
    """
)
MOSTLY_HE = _split(
    """
    engineer doctor mechanic carpenter soldier farmer captain plumber electrician pilot lawyer scientist guard
    driver builder programmer surgeon judge banker firefighter boss contractor architect butcher blacksmith janitor
    fisherman sheriff officer miner hunter sailor coach
    """
)

CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Austria": "Vienna", "Belgium": "Brussels",
    "Netherlands": "Amsterdam", "Denmark": "Copenhagen", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Russia": "Moscow",
    "Ukraine": "Kiev", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra",
    "Iraq": "Baghdad", "Iran": "Tehran", "Syria": "Damascus", "Lebanon": "Beirut", "Israel": "Jerusalem",
    "Jordan": "Amman", "Afghanistan": "Kabul", "Pakistan": "Islamabad", "Nepal": "Kathmandu", "Bangladesh": "Dhaka",
    "China": "Beijing", "Japan": "Tokyo", "Taiwan": "Taipei", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Philippines": "Manila", "Australia": "Canberra", "Canada": "Ottawa", "Cuba": "Havana",
    "Jamaica": "Kingston", "Peru": "Lima", "Chile": "Santiago", "Colombia": "Bogota", "Venezuela": "Caracas",
    "Uruguay": "Montevideo", "Scotland": "Edinburgh", "Wales": "Cardiff", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb", "Switzerland": "Bern", "Iceland": "Reykjavik",
    "Qatar": "Doha", "Libya": "Tripoli", "Tunisia": "Tunis", "Algeria": "Algiers", "Somalia": "Mogadishu",
    "Zimbabwe": "Harare",
}  # fmt: skip

PARAMETERS = _split(
    """
    size name path file line text key value index count width height color label title message page user group order
    mode level port host url data image table column row node tree list item field start end limit offset length
    token word model layer output input target source filter format version state status result event error time
    date year month day hour type class code id number address city country price weight
    """
)
ACTIONS = _split(
    """
    load update create find read send parse merge check convert build print
    """
)
DESCRIPTIONS = _split(
    "the value to use; what should be returned; used by default; given by the caller; "
    "how it is stored; read from the file; kept for later; the current setting; "
    "needed for the call; as it was sent; a part of the whole; set at the start",
    ";",
)
