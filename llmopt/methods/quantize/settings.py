"""What a recipe may say of how codes are chosen: a class a method, as the table names it. No torch.

Methods that share a setting share its definition, and its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmopt.recipe.fields import Flag, Settings

ActOrder = Literal["none", "group", "full"]


class MethodSettings(Settings):
    """What all methods know."""

    signed_scales: Annotated[bool, Flag(off="--unsigned-scales")] = Field(
        True, description="allow negative scales on a symmetric grid"
    )


class Searched(MethodSettings):
    """Scales come from a search."""

    scale_search: Literal["auto", "minmax", "mse", "importance"] = Field(
        "auto", description="auto: importance where there is calibration text, else mse"
    )


class Sequential(Settings):
    """Statistics come from a walk over the model."""

    true_sequential: Annotated[bool, Flag(off="--no-true-sequential")] = Field(
        True, description="statistics of each linear see the quantized ones before it"
    )


class Refined(Settings):
    """Sweeps of a descent over scales and codes follow.

    0 is the method's first pass alone. From 1 on error feedback also tries a few scales for each
    group, and descends over scale and codes before the next group is rounded.
    """

    refine: int = Field(2, ge=0, le=20, description="sweeps over scales and codes after feedback")


class Feedback(Refined):
    """Errors are fed back through a factor of the Hessian.

    damping: added to the Hessian's diagonal, as a fraction of its mean; grows where it must.
    """

    damping: float = Field(0.01, gt=0, lt=1, description="share of the mean Hessian diagonal")


class RtnSettings(Searched):
    """Round to nearest."""


class AwqSettings(Sequential, MethodSettings):
    """Clip, and round to nearest."""


class QuantEaseSettings(Refined, Sequential, Searched):
    """Coordinate descent."""


class GptqSettings(Feedback, Sequential, Searched):
    """Error feedback.

    act_order: the order in which columns are rounded. "none" as stored; "group" (group-aware)
    sorts columns inside groups and groups among themselves, and keeps groups of consecutive
    columns; "full" sorts all columns and makes groups of neighbours in that order, so that the
    result needs a group index.
    static_groups: fix every group's scale before any rounding; with "full" order the groups then
    stay those of consecutive columns.
    """

    act_order: ActOrder = Field(
        "group", description="column order: stored; by activation within groups; by activation"
    )
    static_groups: bool = Field(False, description="fit all scales before any feedback")

    @property
    def regroups(self) -> bool:
        """Whether groups are of neighbours in the order of rounding, which takes an index."""
        return self.act_order == "full" and not self.static_groups
