"""Names of places: read, printed, checked against a model."""

from __future__ import annotations

import pytest
from anatomist.errors import BadSite
from anatomist.model.sites import KINDS, Shape, Site, check_site, head_name, list_sites, parse_head, parse_site

SHAPE = Shape(n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=8, kinds=KINDS)


@pytest.mark.parametrize("name", ["embed", "blocks.3.resid_post", "blocks.0.head.7", "blocks.12.neuron.17", "logits"])
def test_a_name_reads_and_prints_as_itself(name: str) -> None:
    assert str(parse_site(name)) == name


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name",
    ["", "hook_resid_post", "resid_post", "blocks.3", "blocks.x.head", "blocks.3.typo", "blocks.3.head.a",
     "blocks.3.resid_post.1", "blocks.3.logits", "blocks.-1.head", "embed.0"],
)  # fmt: skip
def test_what_is_not_a_name_is_an_error_that_shows_how_to_write_one(name: str) -> None:
    with pytest.raises(BadSite, match=r"is not a site\. Write 'blocks\.<layer>\.<kind>'"):
        parse_site(name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site("resid_post", 2), "layer 2 of blocks.2.resid_post does not exist: layers are 0 to 1"),
        (Site("resid_post"), "layer None"),
        (Site("head", 0, 4), "blocks.0.head.4 does not exist: head runs from 0 to 3"),
        (Site("k", 0, 2), "k runs from 0 to 1"),
        (Site("neuron", 1, 8), "neuron runs from 0 to 7"),
    ],
)
def test_a_place_outside_the_model_is_an_error_with_its_bounds(site: Site, words: str) -> None:
    with pytest.raises(BadSite, match=words.replace(".", r"\.")):
        check_site(site, SHAPE)


@pytest.mark.bad_input
def test_a_kind_the_model_lacks_is_an_error_that_lists_its_kinds() -> None:
    shape = SHAPE._replace(kinds=("resid_pre", "head"))
    with pytest.raises(BadSite, match="no 'pattern'; they have resid_pre, head"):
        check_site(Site("pattern", 0), shape)


@pytest.mark.hand_worked
def test_the_list_has_every_place_once_in_the_order_computed() -> None:
    """Two layers of twelve kinds, one place before them and two after."""
    sites = list_sites(SHAPE)
    assert len(sites) == len(set(sites)) == 1 + 2 * 12 + 2
    names = [str(site) for site in sites]
    assert names[:3] == ["embed", "blocks.0.resid_pre", "blocks.0.q"]
    assert names.index("blocks.0.resid_post") < names.index("blocks.1.resid_pre")
    assert names[-2:] == ["final_norm", "logits"]


def test_heads_are_written_the_fields_way() -> None:
    assert head_name(1, 3) == "L1H3"
    assert parse_head("L1H3", SHAPE) == (1, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "words"), [("1.3", "not a head"), ("L2H0", "layers are 0 to 1"), ("L0H4", "heads 0 to 3")]
)
def test_a_head_outside_the_model_or_misspelt_is_an_error(text: str, words: str) -> None:
    with pytest.raises(BadSite, match=words):
        parse_head(text, SHAPE)
