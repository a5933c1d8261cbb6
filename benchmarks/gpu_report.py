"""The tables of benchmarks/gpu.py, made from its JSON files alone."""

import json
from pathlib import Path

import profile_report
import speed_report


def write_report(folder: Path) -> Path:
    """Write gpu.md with the table of every piece in ``folder``; return the file."""
    pieces = {}
    for file in sorted(folder.glob("*.json")):
        pieces[file.stem] = json.loads(file.read_text(encoding="utf-8"))
    lines = ["# On a GPU", ""]
    for name, results in pieces.items():
        lines += [f"## {name}", "", _circumstances(results), ""]
        lines += _table(name, results) + [""]
        if not results["is_complete"]:
            lines += ["Not complete.", ""]
    file = folder / "gpu.md"
    file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return file


def _circumstances(results: dict) -> str:
    settings = results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"`{results['command']}`, {results['date']}, {results['device']['name']}; {versions}. "
        f"{settings['width']}x{settings['height']}, {settings['frames']} frames, "
        f"{settings['dtype']}, random weights."
    )


def _table(name: str, results: dict) -> list[str]:
    rows = results["rows"]
    if name == "profile":
        return profile_report.profile_table(rows[0], "components")
    if name == "memory":
        return _memory_table(rows)
    if name == "decoding":
        return _decoding_table(rows)
    if name == "compiled":
        return _compiled_table(rows)
    if name == "cards":
        return _cards_table(rows)
    return speed_report.table_lines({**results, "variants": rows})


def _memory_table(rows: list[dict]) -> list[str]:
    lines = ["| variant | peak activations | ComfyUI plans |", "| --- | --- | --- |"]
    for row in rows:
        plan = row["comfyui_plans_bytes"]
        lines.append(f"| {row['name']} | {_gb(row['peak_bytes'])} | {_gb(plan)} |")
    return lines


def _decoding_table(rows: list[dict]) -> list[str]:
    whole = rows[0]["seconds"]
    lines = [
        "| how | seconds | of VAE Decode | peak beside the weights | largest difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {row['seconds'] / whole:.2f} "
            f"| {_gb(row['peak_bytes'])} | {row['largest']:.1e} |"
        )
    return lines


def _compiled_table(rows: list[dict]) -> list[str]:
    seconds = {row["key"]: row["seconds"] for row in rows}
    lines = [
        "| variant | seconds | faster than stock, both eager or both compiled | first steps "
        "| graphs | breaks | difference from eager |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        stock = seconds[row["key"].replace("cached", "baseline")]
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {stock / row['seconds']:.3f} "
            f"| {row['warm_up_seconds']:.1f} | {row['graphs']} | {row['breaks']} "
            f"| {row['difference_from_eager']:.1e} |"
        )
    return lines


def _cards_table(rows: list[dict]) -> list[str]:
    lines = [
        "Card: PyTorch and ComfyUI may have its memory less 1 GiB. Peaks with the weights.",
        "",
        "| card | graph | seconds a step | peak of sampling | seconds of decoding | peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [f"{row['card_gib']} GiB", row["name"]]
        for stage in ("sampling", "decoding"):
            if error := row.get(f"{stage}_error"):
                cells += [error, ""]
            else:
                seconds, peak = row[f"{stage}_seconds"], row[f"{stage}_peak_bytes"]
                cells += [f"{seconds:.2f}", _gb(peak)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
