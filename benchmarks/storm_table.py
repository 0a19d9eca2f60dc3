"""The table of what `python -m tests.storm --out FILE` counted: kills, and what they broke."""

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")


def table(results: dict) -> str:
    """Markdown: a row a program, and their sum."""
    rows = {**results["jobs"], "all": total(list(results["jobs"].values()))}
    lines = [
        f"| program | chains | starts | {' | '.join(SIGNALS)} | differences |",
        "|---|---|---|" + "---|" * len(SIGNALS) + "---|",
    ]
    for name, row in rows.items():
        kills = " | ".join(f"{row['kills'].get(number, 0):,}" for number in SIGNALS)
        cells = f"{row['chains']:,} | {row['starts']:,} | {kills} | {row['differences']:,}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def total(rows: list[dict]) -> dict:
    """The sums of all rows."""
    sums = {name: sum(row[name] for row in rows) for name in ("chains", "starts", "differences")}
    kills = {number: sum(row["kills"].get(number, 0) for row in rows) for number in SIGNALS}
    return sums | {"kills": kills}
