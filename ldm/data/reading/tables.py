"""Tables of captions and labels by another name than metadata.csv, which nothing reads: what they look like is said."""

import re
from collections.abc import Sequence

from ldm.common.errors import UserError
from ldm.data.reading.beside import ending
from ldm.data.reading.rows import alias
from ldm.data.reading.sample import Seen, some
from ldm.data.reading.store import Store

_KINDS = (".txt", ".csv", ".tsv")
_LOOKED_AT = 16  # files
_LARGE = 2**24  # bytes


def tell_tables(store: Store, paths: Sequence[str], seen: Seen) -> None:
    """Notes a file whose first line names columns as metadata.csv has them: Flickr's captions.txt, say."""
    for path in [path for path in paths if ending(path) in _KINDS and path not in seen.unread][:_LOOKED_AT]:
        columns = _columns(store, path)
        if len(columns) > 1 and alias(columns):
            said = f"{path} looks like a table of images (its columns: {some(columns, 4)})"
            seen.note(f"{said}: call it metadata.csv and put it beside the images that it names, to have it read")


def _columns(store: Store, path: str) -> list[str]:
    if store.entries[path][0] > _LARGE:
        return []
    try:
        first = store.text(path).split("\n", 1)[0]
    except UserError:
        return []
    return [name.strip().strip('"') for name in re.split(r"[,;\t|]", first)]
