"""Write spark_fm/ml/accessors.pyi, the accessors of the Params for editors and type checkers."""

from __future__ import annotations

from pathlib import Path

from spark_fm.ml.params import PARAMS, FMParamsBase

STUB = Path(__file__).resolve().parent.parent / "spark_fm" / "ml" / "accessors.pyi"


def stub() -> str:
    """Return the text of the stub."""
    lines = [
        "# Written by `make params` from the table in params.py.",
        "from pyspark.ml.param import Param",
        "from typing_extensions import Self",
        "",
        "from spark_fm.ml.params import FMParamsBase, KeywordParams",
        "",
        "class FMParams(FMParamsBase):",
        *[f"    {row.name}: Param[{row.kind.__name__}]" for row in PARAMS if row.doc],
    ]
    for row in PARAMS:
        if not hasattr(FMParamsBase, row.getter):
            lines += method(row.getter, "self", row.getter_type, row.describe("Return"))
    lines += ["", "class EstimatorParams(KeywordParams, FMParams):"]
    for name, returned, ignored in (
        ("__init__", "None", ""),
        ("setParams", "Self", "  # type: ignore[override]"),
    ):
        lines += [f"    def {name}({ignored}", "        self,", "        *,"]
        lines += [f"        {row.name}: {row.kind.__name__} | None = None," for row in PARAMS]
        lines += [f"    ) -> {returned}: ..."]
    lines += setters(PARAMS)
    lines += ["", "class ModelParams(FMParams):", *setters(r for r in PARAMS if r.on_model)]
    return "\n".join(lines) + "\n"


def setters(rows) -> list[str]:
    """Return the lines of the setters of rows."""
    return [
        line
        for row in rows
        for line in method(
            row.setter, f"self, value: {row.kind.__name__}", "Self", row.describe("Set")
        )
    ]


def method(name: str, arguments: str, returned: str, doc: str) -> list[str]:
    """Return the lines of a method without a body."""
    return [f"    def {name}({arguments}) -> {returned}:", f'        """{doc}"""']


if __name__ == "__main__":
    STUB.write_text(stub())
