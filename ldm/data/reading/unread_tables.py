"""Tables of captions and labels that aren't read because of their names, with a warning about each."""

import re
from collections import defaultdict
from collections.abc import Sequence

from ldm.common.errors import UserError
from ldm.data.reading.findings import Findings, examples
from ldm.data.reading.paths import ending, is_image
from ldm.data.reading.rows import image_column
from ldm.data.reading.store import Store

_KINDS = (".txt", ".csv", ".tsv")
_LOOKED_AT = 16  # files
_LARGE = 2**24  # bytes


def report_tables(store: Store, paths: Sequence[str], findings: Findings) -> None:
    """Warns of files whose first line names an image (train.txt), or columns like those of metadata.csv: Flickr's
    captions.txt, say."""
    tables: dict[str, list[str]] = defaultdict(list)  # by their columns
    for path in [path for path in paths if ending(path) in _KINDS and path not in findings.unread][:_LOOKED_AT]:
        first = _first_line(store, path)
        columns = [name.strip().strip('"') for name in re.split(r"[,;\t|]", first)]
        if _names_image(first):
            message = f"{path} looks like a list of images ({first[:60]}), which isn't read"
            findings.warn(f"{message}: metadata.csv can say the same in columns file_name, split, text and label")
        elif len(columns) > 1 and image_column(columns):
            tables[examples(columns, 4)].append(path)
    for described, found in tables.items():
        findings.mark_unread(found, "a table of images that isn't named metadata.csv")
        what = f"{found[0]} looks like a table" if len(found) == 1 else f"{examples(found)} look like tables"
        step = "to read it, rename it to metadata.csv and put it beside the images that it lists"
        step = step if len(found) == 1 else "each is read if it is named metadata.csv and lies beside its images"
        findings.warn(f"{what} of images (columns: {described}): {step}")


def _first_line(store: Store, path: str) -> str:
    """The first line of a file; empty for a large one, and for one that isn't text."""
    if store.entries[path][0] > _LARGE:
        return ""
    try:
        return store.text(path).split("\n", 1)[0].strip()
    except UserError:
        return ""


def _names_image(line: str) -> bool:
    """Whether a line begins with an image's name, perhaps followed by a label or a caption."""
    return is_image(re.split(r"[\s,;:|]", line)[0])
