"""Tables of captions and labels that aren't read because of their names, with a warning about each."""

import re
from collections.abc import Sequence

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples
from ldm.data.reading.paths import ending
from ldm.data.reading.rows import image_column
from ldm.data.reading.store import Store

_KINDS = (".txt", ".csv", ".tsv")
_LOOKED_AT = 16  # files
_LARGE = 2**24  # bytes


def report_tables(store: Store, paths: Sequence[str], findings: Findings) -> None:
    """Warns of files whose first line names columns like those of metadata.csv: Flickr's captions.txt, say."""
    for path in [path for path in paths if ending(path) in _KINDS and path not in findings.unread][:_LOOKED_AT]:
        columns = _columns(store, path)
        if len(columns) > 1 and image_column(columns):
            message = f"{path} looks like a table of images (its columns: {examples(columns, 4)})"
            findings.warn(
                f"{message}: to read it, rename it to metadata.csv and put it beside the images that it lists"
            )


def _columns(store: Store, path: str) -> list[str]:
    if store.entries[path][0] > _LARGE:
        return []
    try:
        first = store.text(path).split("\n", 1)[0]
    except UserError:
        return []
    return [name.strip().strip('"') for name in re.split(r"[,;\t|]", first)]
