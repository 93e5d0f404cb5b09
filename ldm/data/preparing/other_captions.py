"""Captions of images that have none in metadata or in files beside them, as data.captions says."""

from collections.abc import Sequence

from ldm.data.preparing.options import EMBEDDED, NAMES
from ldm.data.reading.captions.embedded import check_embedded, report_embedded
from ldm.data.reading.captions.names import read_names, report_names
from ldm.data.reading.findings import Findings
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store


def read_other_captions(found: Sequence[Sample], store: Store, captions: str, findings: Findings) -> None:
    """Reads captions of images without one: with "embedded" from inside the image, with "names" from its name. With
    other options, warns of captions inside the images if no image has a caption."""
    without = [sample for sample in found if not sample.text and not sample.caption]
    if captions == EMBEDDED:
        check_embedded(without, store)
        for sample in without:
            sample.caption = sample.image
    elif captions == NAMES:
        read_names(without)
    elif len(without) == len(found):
        report_embedded(without, store, findings)
        if all(sample.label is None for sample in found):
            report_names(found, findings)
