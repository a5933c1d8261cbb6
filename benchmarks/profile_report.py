"""The tables of a profile, made from its JSON alone."""


def profile_text(results: dict) -> str:
    """Return the markdown of a profile: a table of components and one of operators."""
    profiles = results["profiles"]
    lines = [
        "# Where one UNet evaluation spends its time",
        "",
        f"`{results['command']}`",
        "",
        f"{results['date']}; {results['device']['name']}. Cond and uncond in one call, in "
        "milliseconds under torch.profiler, which itself takes a little. The rest of a component "
        "is what it does beside the components inside it.",
        "",
    ]
    for kind in ("components", "operators"):
        lines += [f"## By {kind[:-1]}", "", *profile_table(profiles, kind), ""]
    return "\n".join(lines)


def profile_table(profiles: dict, kind: str) -> list[str]:
    """Return the table of ``kind``: components or operators."""
    tables = {key: _by_name(profile[kind]) for key, profile in profiles.items()}
    first = next(iter(tables.values()))
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    names.sort(key=lambda name: -first.get(name, {"ms": 0.0})["ms"])
    heads = ["", *(f"{key}, ms" for key in tables), *(f"{key}, calls" for key in tables)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for name in names:
        rows = [table.get(name) for table in tables.values()]
        cells = [f"{row['ms']:.2f}" if row else "" for row in rows]
        cells += [str(row["calls"]) if row else "" for row in rows]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    if kind == "components":
        wholes = [f"{profile['whole_ms']:.2f}" for profile in profiles.values()]
        lines.append("| " + " | ".join(["sum", *wholes, *[""] * len(wholes)]) + " |")
    return lines


def _by_name(rows: dict | list) -> dict:
    return rows if isinstance(rows, dict) else {row["name"]: row for row in rows}
