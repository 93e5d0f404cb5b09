"""The caption of an emoji scene in English, Chinese and Arabic, one exact sentence each."""

from collections.abc import Callable, Sequence

Sentence = Callable[[Sequence[str], Sequence[str], int, int, int, int, int], str]

_SIZES = ("small", "big")
_RELATIONS = ("", "above", "to the left of")

# fmt: off
# Measure word and name, as in 一只猫.
CHINESE = {
    "cat": ("只", "猫"), "dog": ("只", "狗"), "fish": ("条", "鱼"), "rocket": ("枚", "火箭"), "car": ("辆", "汽车"),
    "tree": ("棵", "树"), "house": ("座", "房子"), "apple": ("个", "苹果"), "banana": ("根", "香蕉"),
    "star": ("颗", "星星"), "heart": ("颗", "红心"), "mushroom": ("朵", "蘑菇"), "frog": ("只", "青蛙"),
    "panda": ("只", "熊猫"), "pig": ("头", "猪"), "crab": ("只", "螃蟹"), "umbrella": ("把", "雨伞"),
    "burger": ("个", "汉堡"), "cactus": ("棵", "仙人掌"), "hat": ("顶", "帽子"), "penguin": ("只", "企鹅"),
    "robot": ("个", "机器人"), "shirt": ("件", "衬衫"), "gift": ("份", "礼物"),
}
# Name and gender, which the adjective follows.
ARABIC = {
    "cat": ("قطة", "f"), "dog": ("كلب", "m"), "fish": ("سمكة", "f"), "rocket": ("صاروخ", "m"), "car": ("سيارة", "f"),
    "tree": ("شجرة", "f"), "house": ("بيت", "m"), "apple": ("تفاحة", "f"), "banana": ("موزة", "f"),
    "star": ("نجمة", "f"), "heart": ("قلب", "m"), "mushroom": ("فطر", "m"), "frog": ("ضفدع", "m"),
    "panda": ("باندا", "m"), "pig": ("خنزير", "m"), "crab": ("سلطعون", "m"), "umbrella": ("مظلة", "f"),
    "burger": ("برغر", "m"), "cactus": ("صبار", "m"), "hat": ("قبعة", "f"), "penguin": ("بطريق", "m"),
    "robot": ("روبوت", "m"), "shirt": ("قميص", "m"), "gift": ("هدية", "f"),
}
CHINESE_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "pink": "粉色", "white": "白色",
}
ARABIC_COLOURS = {  # feminine, as the background is
    "red": "حمراء", "orange": "برتقالية", "yellow": "صفراء", "green": "خضراء", "blue": "زرقاء", "purple": "بنفسجية",
    "pink": "وردية", "white": "بيضاء",
}
# fmt: on


def english(
    objects: Sequence[str], backgrounds: Sequence[str], first: int, second: int, relation: int, ground: int, size: int
) -> str:
    """a big cat on a red background; a cat above a rocket on a blue background"""
    where = f"on {_a(backgrounds[ground])} background"
    if relation == 0:
        return f"{_a(f'{_SIZES[size]} {objects[first]}')} {where}"
    return f"{_a(objects[first])} {_RELATIONS[relation]} {_a(objects[second])} {where}"


def chinese(
    objects: Sequence[str], backgrounds: Sequence[str], first: int, second: int, relation: int, ground: int, size: int
) -> str:
    """红色背景上的一只大猫; 蓝色背景上，一只猫在一枚火箭的上方"""
    where = f"{CHINESE_COLOURS[backgrounds[ground]]}背景上"
    measure, name = CHINESE[objects[first]]
    if relation == 0:
        return f"{where}的一{measure}{'小大'[size]}{name}"
    other_measure, other = CHINESE[objects[second]]
    return f"{where}，一{measure}{name}在一{other_measure}{other}的{('', '上方', '左边')[relation]}"


def arabic(
    objects: Sequence[str], backgrounds: Sequence[str], first: int, second: int, relation: int, ground: int, size: int
) -> str:
    """قطة كبيرة على خلفية حمراء; قطة فوق صاروخ على خلفية زرقاء"""
    where = f"على خلفية {ARABIC_COLOURS[backgrounds[ground]]}"
    name, gender = ARABIC[objects[first]]
    if relation == 0:
        return f"{name} {('صغير', 'كبير')[size]}{'ة' if gender == 'f' else ''} {where}"
    return f"{name} {('', 'فوق', 'إلى يسار')[relation]} {ARABIC[objects[second]][0]} {where}"


SENTENCES: dict[str, Sentence] = {"en": english, "zh": chinese, "ar": arabic}
NAMED = {"zh": frozenset(CHINESE), "ar": frozenset(ARABIC)}  # objects that have a name in the language


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' or words.startswith('umbrella') else 'a'} {words}"
