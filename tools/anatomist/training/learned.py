"""What was learned, as data, in words and as pictures: for each kind of toy that can be trained."""

from __future__ import annotations

from pydantic import Field

from ..figures import Bars, Heatmap, Lines, Scatter, Series
from ..result import Frozen, Grid

Panel = Lines | Bars | Scatter | Heatmap
SMALLEST = 1e-12  # nats; a loss of 0 is drawn here on a logarithmic scale
FORMED = 0.3  # score from which a head is called by its kind; evenly spread attention gives about .05
FEW_STARTS = 8
GENERALISED = 0.1  # nats on pairs that were not trained on


class InductionLearned(Frozen):
    """Heads of a model trained on repeated random tokens."""

    loss: float = Field(description="Where the answer can be known, in nats.")
    first_copy: float = Field(description="Loss where it cannot be known, in nats; the vocabulary's entropy at best.")
    under: int | None = Field(description="First measured step with a loss under 0.1 nats; absent if none.")
    scores: Grid = Field(description="Mean attention of every head by kind, on fresh repeated tokens.")
    previous_token: tuple[str, ...] = Field(description="Heads of layer 0 with a previous-token score of .3 or more.")
    induction: tuple[str, ...] = Field(description="Heads of layer 1 with an induction score of .3 or more.")
    over_training: Grid = Field(description="Highest score of each kind in its layer, at every checkpoint.")

    def words(self) -> str:
        under = "never under .1" if self.under is None else f"under .1 from step {self.under}"
        return (
            f"Loss {self.loss:.3g} nats on later copies ({under}; {self.first_copy:.2f} on the first). Previous-token "
            f"heads in layer 0: {_listed(self.previous_token)}; induction heads in layer 1: {_listed(self.induction)}. "
            "Attention is not use: ablate a head, and several together, for they stand "
            "in for each other."
        )

    def warnings(self) -> tuple[str, ...]:
        if self.under is not None and self.induction:
            return ()
        return (
            f"It has not learned to repeat (loss {self.loss:.3g} nats, induction heads {_listed(self.induction)}): "
            "take more steps.",
        )

    def panels(self) -> tuple[Panel, ...]:
        axis = self.over_training.axes[1]
        values = self.over_training.values or ()
        n = len(axis.labels)
        over = Lines(
            title="heads as they form", x_title="step", x=tuple(map(float, axis.labels)), y_title="highest score",
            series=tuple(
                Series(name=name, values=values[i * n : (i + 1) * n])
                for i, name in enumerate(self.over_training.axes[0].labels)
            ),
        )  # fmt: skip
        return over, Heatmap(title="scores of the trained heads", grid=self.scores, diverging=False, domain=(0.0, 1.0))


class AdditionLearned(Frozen):
    """The waves by which a model adds, and what is lost without them (Nanda et al., arXiv 2301.05217)."""

    generalised: int | None = Field(
        description="First measured step with under .1 nats on other pairs; absent if none."
    )
    accuracy: float = Field(description="Of the finished model on pairs that were not trained on.")
    key_frequencies: tuple[int, ...] = Field(
        description="Frequencies of waves in a + b that carry 1% of the logits' variance or more, the largest first."
    )
    key_share: float = Field(description="Share of the logits' variance over pairs that they carry.")
    full_loss: float = Field(description="Over all pairs, in nats.")
    restricted_loss: float = Field(description="With nothing but the key waves and the mean, over all pairs, in nats.")
    train_loss: float = Field(description="Over the trained pairs, in nats.")
    excluded_loss: float = Field(description="Without the key waves, over the trained pairs, in nats.")
    random_loss: float = Field(
        description="Without as many random other frequencies: the largest loss over the trained pairs, in nats."
    )
    random_sets: int = Field(description="Random sets drawn; 0 where there are too few other frequencies.")
    frequencies: Grid = Field(description="Share of variance by frequency: of the logits, and of the embedding.")
    over_training: Grid = Field(description="Losses at every checkpoint, with the finished model's key frequencies.")

    def words(self) -> str:
        keys = ", ".join(map(str, self.key_frequencies))
        since = "It has not generalised" if self.generalised is None else f"It generalises from step {self.generalised}"
        return (
            f"{since} (accuracy {self.accuracy:.3f} on other pairs). Key frequencies {keys} carry "
            f"{self.key_share:.1%} of the logits' variance. Loss: {self.full_loss:.2g} nats over all pairs, "
            f"{self.restricted_loss:.2g} with the key waves alone; on trained pairs "
            f"{self.train_loss:.2g}, without the key waves {self.excluded_loss:.2g}, without as many random ones at "
            f"most {self.random_loss:.2g}. Removing waves from the logits shows that the answer is made of them, not "
            "how the weights make them."
        )

    def warnings(self) -> tuple[str, ...]:
        found = []
        if self.generalised is None:
            found.append(
                f"It has memorised and not generalised (accuracy {self.accuracy:.2f} on other pairs): take more steps, "
                "or a larger share of the pairs. The key frequencies mean little."
            )
        if self.random_sets == 0:
            found.append("No random frequencies were left to compare with: nearly all of them are key frequencies.")
        return tuple(found)

    def panels(self) -> tuple[Panel, ...]:
        names, steps = self.over_training.axes[0].labels, self.over_training.axes[1].labels
        values, n = self.over_training.values or (), len(steps)
        losses = Lines(
            title="progress measures", x_title="step", x=tuple(map(float, steps)), y_title="loss (nats)", log_y=True,
            series=tuple(
                Series(name=name, values=tuple(max(SMALLEST, v or 0.0) for v in values[i * n : (i + 1) * n]))
                for i, name in enumerate(names)
            ),
        )  # fmt: skip
        k, share = len(self.frequencies.axes[1].labels), self.frequencies.values or ()
        bars = Bars(
            title="logits by frequency", value_title="share of variance", labels=self.frequencies.axes[1].labels,
            values=share[:k],
            groups=tuple("key" if i + 1 in self.key_frequencies else "other" for i in range(k)),
        )  # fmt: skip
        return losses, bars


class FeatureGeometry(Frozen):
    """How the features lie at one sparsity, for the best of all starts."""

    sparsity: float = Field(description="Probability that a feature is 0.")
    importances: tuple[float, ...] = Field(description="Weight of each feature's error in the loss.")
    loss: float = Field(description="Of the best start, on fresh samples.")
    median_loss: float = Field(description="Of all starts.")
    same: int = Field(description="Starts that make the same figure as the best one.")
    starts: int
    figure: str = Field(description="The figure that the represented features make.")
    dimensionality: tuple[float, ...] = Field(
        description="Share of a dimension that each feature has; 0 if it is not held."
    )
    norms: tuple[float, ...] = Field(description="Length of each feature's vector.")
    angles: tuple[float, ...] = Field(
        description="Degrees between neighbours round the plane; in two dimensions alone."
    )
    vectors: Grid = Field(description="Each feature's vector in the hidden space.")

    def words(self) -> str:
        held = [d for d in self.dimensionality if d]
        spread = f"{min(held):.2f} to {max(held):.2f}" if held else "none held"
        return (
            f"sparsity {self.sparsity:g}: {self.figure} (dimensionality {spread}; {self.same} of {self.starts} starts)"
        )

    def warnings(self) -> tuple[str, ...]:
        if self.starts >= FEW_STARTS:
            return ()
        return (
            f"Sparsity {self.sparsity:g} was trained from {self.starts} start(s): single starts end in local minima "
            f"one time in five or more; take {FEW_STARTS} or more.",
        )

    def panel(self) -> Panel:
        n = len(self.norms)
        values = self.vectors.values or ()
        x = tuple(float(values[2 * i] or 0) for i in range(n))
        y = tuple(float(values[2 * i + 1] or 0) for i in range(n))
        return Scatter(
            title=f"sparsity {self.sparsity:g}: {self.figure}", x_title="hidden dimension 0", y_title="dimension 1",
            x=x, y=y, labels=self.vectors.axes[0].labels,
            groups=tuple("held" if d else "not held" for d in self.dimensionality),
        )  # fmt: skip


def _listed(heads: tuple[str, ...]) -> str:
    return ", ".join(heads) or "none"
