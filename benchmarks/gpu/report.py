"""The results as Markdown."""

from typing import Any

from benchmarks.paired import table


def markdown(report: dict[str, Any]) -> str:
    parts = [f"# `make gpu`: {report['machine']['gpu'] or 'no GPU'}", about(report["machine"])]
    parts += tests(report["tests"]) + timings(report["table"])
    parts += listed("Missing packages, and what they cost", report["missing"])
    parts += listed("Left out, for lack of time or of a GPU", report["cut"])
    return "\n\n".join(parts) + "\n"


def about(machine: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "gpu" and value is not None)
    if machine["gpu"]:
        return f"{facts}."
    return (
        f"{facts}. There is no CUDA GPU here: the tests compared the CPU with itself and with the pretended device, "
        "and the table is of tiny networks on the CPU. It shows that these scripts run, and nothing of a GPU."
    )


def tests(found: dict[str, Any]) -> list[str]:
    if not found:
        return ["## Tests", "None was run."]
    words = f"{found.get('passed', 0)} passed, {len(found.get('failed', {}))} failed."
    lists = listed("Failed tests", found.get("failed")) + listed("Skipped tests", found.get("skipped"))
    return ["## Tests against the CPU", words, *lists]


def timings(found: dict[str, Any]) -> list[str]:
    if not found:
        return ["## Beside diffusers", "Nothing was timed."]
    words = (
        f"Networks compute in {found['dtype']}: training under autocast, with a fused AdamW, without average, clipping "
        "and data; generating is 20 steps of DDIM with guidance (of tiny networks 2), of the autoencoder its decoder. "
        "Samples a second: median, least and most of the rounds. "
        "Share of the GPU's peak, on paper, that the operations of convolutions and matrix products reach. Peak memory "
        "of all tensors. Host: until a call returns on an idle device."
    )
    lines = {name: line(row) for name, row in found["rows"].items()}
    equal = [f"{name}: {value:.1e}" for name, value in found["differences"].items()]
    parts = ["## Beside diffusers", words]
    parts += [table(lines)] if lines else ["Nothing was timed."]
    parts += listed("Ours / diffusers, samples a second", ratios(found["rows"]))
    parts += listed("Largest difference on the same weights in float32, by the results' standard deviation", equal)
    return parts + listed("Notes", found["notes"]) + listed("Failed", found["failed"])


def line(row: dict[str, Any]) -> dict[str, Any]:
    speed = row["samples_per_s"]
    return {
        "batch": row["batch"],
        "samples/s": f"{speed['median']:.4g} ({speed['least']:.4g}-{speed['most']:.4g})",
        "of peak": "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}",
        "GB": "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}",
        "a call, ms": row["step_ms"],
        "host, ms": row["host_ms"],
    }


def ratios(rows: dict[str, Any]) -> list[str]:
    found = []
    for name, row in rows.items():
        other = rows.get(name.removesuffix("ours") + "diffusers")
        if row["who"] == "ours" and other and other["batch"] == row["batch"]:
            ratio = row["samples_per_s"]["median"] / other["samples_per_s"]["median"]
            found.append(f"{name.removesuffix(', ours')}: {ratio:.2f}")
    return found


def listed(title: str, found: Any) -> list[str]:
    """A list with a title, or nothing where it is empty."""
    if not found:
        return []
    items = [f"{key}: {value}" for key, value in found.items()] if isinstance(found, dict) else found
    return [f"**{title}**", "\n".join(f"- {item}" for item in items)]
