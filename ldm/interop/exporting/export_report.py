"""What an export reports to its user."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What was written: for each part "stock", or why it needed a class of its own; and what other tools need to
    know."""

    parts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def stock(self) -> bool:
        """Whether all parts have a class of diffusers."""
        return all(reason == "stock" for reason in self.parts.values())

    def __str__(self) -> str:
        parts = [
            f"{name}: {'stock class' if reason == 'stock' else f'class of its own ({reason})'}"
            for name, reason in self.parts.items()
        ]
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])
