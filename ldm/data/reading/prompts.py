"""Prompts as programs that generate images write them into these: as text with settings behind it, or as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SETTINGS = re.compile(r"\n(Negative prompt|Steps): .*", re.DOTALL)  # Automatic1111's, behind the prompt
_MIDJOURNEY = re.compile(r"(\s+--[a-z]+(\s+[^-\s]\S*)*)*\s*Job ID: [-0-9a-f]+$", re.IGNORECASE)
_DREAM = re.compile(r'"(.*?)" -[a-zA-Z] .*', re.DOTALL)  # InvokeAI's of before
_NAMES = ("prompt", "positive_prompt", "Prompt", "Positive prompt", "positivePrompt", "c")  # the last is Draw Things'
_DEEP = 3  # mappings within mappings
# What ComfyUI's nodes call words, and the nodes that words come through.
_WORDS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "positive_prompt", "text_positive", "string", "value")
_SAMPLED = ("positive", "guider", "conditioning")


def prompt_of(text: str) -> str:
    """The prompt in what a generator wrote; words that are none of its forms as they are. Of JSON, which is no caption,
    the prompt that it holds, or nothing."""
    text = text.strip()
    if text[:1] in ("{", "["):
        try:
            return _of_json(json.loads(text))
        except (ValueError, RecursionError):
            pass
    if match := _DREAM.fullmatch(text):
        return match[1]
    return _MIDJOURNEY.sub("", _SETTINGS.sub("", text)).strip()


def _of_json(value: Any) -> str:
    items = value.items() if isinstance(value, Mapping) else ()
    nodes = {str(name): node for name, node in items if isinstance(node, Mapping)}
    if any("class_type" in node for node in nodes.values()):
        return _of_graph(nodes)
    return _named(value, _DEEP)


def _named(value: Any, deep: int) -> str:
    """The first text by a prompt's name in mappings, and in lists of them."""
    within: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        if text := next((value[name] for name in _NAMES if isinstance(value.get(name), str) and value[name]), ""):
            return text
        within = value.values()
    return next((text for part in within if (text := _named(part, deep - 1))), "") if deep else ""


def _of_graph(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The words that ComfyUI's graph leads to the sampler as what is wanted, or those of its first encoder of text."""
    for name in _SAMPLED:
        for node in nodes.values():
            if text := _follow(nodes, _inputs(node).get(name), set()):
                return text
    encoders = [_inputs(node) for node in nodes.values() if "TextEncode" in str(node.get("class_type"))]
    return next((inputs["text"] for inputs in encoders if isinstance(inputs.get("text"), str)), "")


def _follow(nodes: Mapping[str, Mapping[str, Any]], link: Any, seen: set[str]) -> str:
    """The words at the end of a link [node, number], through the nodes between."""
    if not isinstance(link, list) or not link or str(link[0]) in seen:
        return ""
    seen.add(str(link[0]))
    inputs = _inputs(nodes.get(str(link[0]), {}))
    if text := next((inputs[name] for name in _WORDS if isinstance(inputs.get(name), str) and inputs[name]), ""):
        return text
    onward = [inputs[name] for name in _WORDS if name in inputs] or list(inputs.values())
    return next((text for value in onward if (text := _follow(nodes, value, seen))), "")


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}
