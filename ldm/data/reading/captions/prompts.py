"""Prompts as image generators write them into their images: as text followed by settings, or as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SETTINGS = re.compile(r"\n(Negative prompt|Steps): .*", re.DOTALL)  # Automatic1111's, after the prompt
_MIDJOURNEY = re.compile(r"(\s+--[a-z]+(\s+[^-\s]\S*)*)*\s*Job ID: [-0-9a-f]+$", re.IGNORECASE)
_DREAM = re.compile(r'"(.*?)" -[a-zA-Z] .*', re.DOTALL)  # earlier versions of InvokeAI
_NAMES = ("prompt", "positive_prompt", "Prompt", "Positive prompt", "positivePrompt", "c")  # the last is Draw Things'
_DEPTH = 3  # mappings within mappings
# Inputs of ComfyUI's nodes that hold text, and those that lead to it.
_WORDS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "positive_prompt", "text_positive", "string", "value")
_HOLDS_TEXT = re.compile(r"TextEncode|string|text|prompt|wildcard", re.IGNORECASE)  # names of nodes
_SAMPLED = ("positive", "guider", "conditioning")


def prompt_of(text: str) -> str:
    """The prompt in a text that a generator wrote; any other text as it is. JSON is never a caption itself: the prompt
    in it is returned, or nothing."""
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
    if isinstance(value, Mapping) and isinstance(value.get("nodes"), list):
        return _of_graph(_graph_of_workflow(value["nodes"], value.get("links")))
    items = value.items() if isinstance(value, Mapping) else ()
    nodes = {str(name): node for name, node in items if isinstance(node, Mapping)}
    if any("class_type" in node for node in nodes.values()):
        return _of_graph(nodes)
    return _named(value, _DEPTH)


def _named(value: Any, deep: int) -> str:
    """The first text under a prompt's key in a mapping, or in mappings and lists inside it."""
    within: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        if text := next((value[name] for name in _NAMES if isinstance(value.get(name), str) and value[name]), ""):
            return text
        within = value.values()
    return next((text for part in within if (text := _named(part, deep - 1))), "") if deep else ""


def _of_graph(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The positive prompt that ComfyUI's graph leads to the sampler, or the text of its first text encoder."""
    for name in _SAMPLED:
        for node in nodes.values():
            if text := _follow(nodes, _inputs(node).get(name), set()):
                return text
    encoders = [_inputs(node) for node in nodes.values() if "TextEncode" in str(node.get("class_type"))]
    return next((inputs["text"] for inputs in encoders if isinstance(inputs.get("text"), str)), "")


def _graph_of_workflow(nodes: list[Any], links: Any) -> dict[str, Mapping[str, Any]]:
    """ComfyUI's `workflow`, which lays a graph out for its page, as the graph that `prompt` holds: each node's class
    and inputs, with links as [node, number].

    A link is [id, from node, number, to node, number, kind]. Of a node's own values only the text of nodes for texts
    is kept, as values have no names there. Muted and bypassed nodes (modes 2 and 4) have no text.
    """
    sources = {
        str(link[0]): [str(link[1]), link[2]] for link in links or () if isinstance(link, list) and len(link) > 4
    }
    graph: dict[str, Mapping[str, Any]] = {}
    for node in nodes:
        if not isinstance(node, Mapping):
            continue
        ports = [port for port in node.get("inputs") or () if isinstance(port, Mapping)]
        linked = [(str(port.get("name")), str(port.get("link"))) for port in ports]
        inputs: dict[str, Any] = {name: sources[link] for name, link in linked if link in sources}
        kind, values = str(node.get("type")), node.get("widgets_values")
        values = list(values.values()) if isinstance(values, Mapping) else values or []
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        if texts and _HOLDS_TEXT.search(kind) and node.get("mode") not in (2, 4) and not {*_WORDS} & {*inputs}:
            inputs["text"] = texts[0]
        graph[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def _follow(nodes: Mapping[str, Mapping[str, Any]], link: Any, seen: set[str]) -> str:
    """The text at the end of a link [node, number], following the nodes in between."""
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
