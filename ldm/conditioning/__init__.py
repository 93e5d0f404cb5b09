"""From the columns of a batch to the conditions that a network reads.

`on_host` drops captions and other conditions in training, for classifier-free guidance.
"""

from ldm.conditioning.augmentation import Augmentation
from ldm.conditioning.class_label import ClassLabel, classes_line
from ldm.conditioning.conditioner import Conditioner, merge
from ldm.conditioning.conditions import Conditions, conditions_of
from ldm.conditioning.image_embedding import ImageEmbedding
from ldm.conditioning.inpaint import Inpaint
from ldm.conditioning.lowres import LowRes
from ldm.conditioning.maps import MapTokens, SemanticMap
from ldm.conditioning.part import Part
from ldm.conditioning.sizes import ImageSize
from ldm.conditioning.text.frozen import FrozenText
from ldm.conditioning.text.joined import JoinedText
from ldm.conditioning.text.trained import Text

__all__ = [
    "Augmentation",
    "Conditions",
    "ClassLabel",
    "Conditioner",
    "FrozenText",
    "ImageEmbedding",
    "ImageSize",
    "Inpaint",
    "JoinedText",
    "LowRes",
    "MapTokens",
    "Part",
    "SemanticMap",
    "Text",
    "classes_line",
    "conditions_of",
    "merge",
]
