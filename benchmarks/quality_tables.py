"""The tables of the quality benchmark."""

from dataclasses import dataclass

import quality_variants
import step_cache_variants
from quality_variants import Variant


@dataclass(frozen=True)
class Table:
    """What is compared in one run.

    few: names of variants of which fewer videos are made. stand_ins: whether the stand-ins for
    VBench are measured too.
    """

    name: str
    file: str
    variants: tuple[Variant, ...]
    few: frozenset[str] = frozenset()
    stand_ins: bool = True


TABLES = {
    table.name: table
    for table in (
        Table("guidance", "quality", quality_variants.VARIANTS),
        Table(
            "step_cache",
            "quality_step_cache",
            step_cache_variants.VARIANTS,
            step_cache_variants.FEW,
            stand_ins=False,
        ),
    )
}
BY_NAME = {variant.name: variant for table in TABLES.values() for variant in table.variants}
