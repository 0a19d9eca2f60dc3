"""The table of a run of pretrain.py by its metrics: loss and throughput after each epoch."""


def table(results: dict) -> str:
    """Markdown: a row an epoch."""
    lines = [
        "| million tokens | seconds | tokens/s | MFU | valid loss, nats | bits a byte |",
        "|---|---|---|---|---|---|",
    ]
    seconds = 0.0
    for row in results["epochs"]:
        seconds += row["seconds"]
        lines.append(
            f"| {row['tokens'] / 1e6:.1f} | {seconds:.0f} | {row['tokens_per_second']:,.0f} | "
            f"{row['mfu']:.1%} | {row['val_loss']:.3f} | {row['bits_per_byte']:.3f} |"
        )
    return "\n".join(lines)
