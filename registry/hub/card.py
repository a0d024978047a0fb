"""The model card of a delta: front matter for the Hub, and for people what it needs, what it is, and how to restore it.

The text follows from the documents and the arguments alone: the same delta gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hfq.schema.errors import UsageError

from .address import check_repo, is_commit
from .card_check import LICENSES, PIPELINE_TAGS, RELATION
from .card_scores import Recorded, render_recorded
from .card_text import plain, size_text, table

__all__ = ["CardFacts", "card_facts", "official_bases", "render_card"]

_NAMES: Final = {"hif4": "HiFloat4", "hif8": "HiFloat8", "bf16": "BF16"}
_BITS: Final = {"hif4": 4, "hif8": 8, "bf16": 16}

_PIPELINES: Final = {
    "t2v": "text-to-video", "ti2v": "text-to-video", "i2v": "image-to-video", "flf2v": "image-to-video",
}  # fmt: skip
"""VACE does several tasks: its tag is the caller's to choose."""

_OFFICIAL: Final[Mapping[tuple[str, int], tuple[str, ...]]] = {
    ("t2v", 2): ("Wan-AI/Wan2.2-T2V-A14B",),
    ("i2v", 2): ("Wan-AI/Wan2.2-I2V-A14B",),
    ("ti2v", 1): ("Wan-AI/Wan2.2-TI2V-5B",),
    ("t2v", 1): ("Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-1.3B"),
    ("i2v", 1): ("Wan-AI/Wan2.1-I2V-14B-720P", "Wan-AI/Wan2.1-I2V-14B-480P"),
    ("flf2v", 1): ("Wan-AI/Wan2.1-FLF2V-14B-720P",),
    ("vace", 1): ("Wan-AI/Wan2.1-VACE-14B", "Wan-AI/Wan2.1-VACE-1.3B"),
}

_BLOCK: Final = re.compile(r"(?:vace_)?blocks\.[0-9]+(?=\.)")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card says and the delta's documents do not.

    Attributes:
        repo: where the card will lie.
        base_models: repositories of the checkpoint that the delta needs; the first is named in the first line.
        license: the Hub's identifier, one of `card_check.LICENSES`.
        revision: what the restore command asks for; None is the repository's main branch.
        recorded: what a registry knows of the delta's clips; None where none knows the delta.
        base_commits: (base repository, commit) where the files that the delta was made from are known to lie.
    """

    repo: str
    base_models: tuple[str, ...]
    license: str
    pipeline_tag: str
    revision: str | None = None
    recorded: Recorded | None = None
    base_commits: tuple[tuple[str, str], ...] = ()


def official_bases(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Repositories of Wan releases that have this kind and number of experts: suggestions, never an answer."""
    base = document["base"]
    return _OFFICIAL.get((base["model_type"], len(base["experts"])), ())


def card_facts(
    document: Mapping[str, Any],
    *,
    repo: str,
    base_model: str | Sequence[str],
    license: str,
    pipeline_tag: str | None = None,
    revision: str | None = None,
    recorded: Recorded | None = None,
    base_commits: Mapping[str, str] | None = None,
) -> CardFacts:
    """Checked arguments. `pipeline_tag` follows from the kind of model where that has one task.

    Raises:
        UsageError: no base, a name that is none, a licence or tag outside the lists, no tag where none follows, a
            commit that is none or of another repository.
    """
    bases = (base_model,) if isinstance(base_model, str) else tuple(base_model)
    if not any(bases):
        names = " or ".join(official_bases(document)) or "OWNER/NAME"
        raise UsageError("a card names the base that the delta needs", todo=f"give its repository, for example {names}")
    for name in bases:
        check_repo(name)
    if license not in LICENSES:
        raise UsageError("not a licence that the card can name", expected=", ".join(LICENSES), found=repr(license))
    tag = pipeline_tag or _PIPELINES.get(document["base"]["model_type"])
    if tag not in PIPELINE_TAGS:
        raise UsageError(
            f"a {document['base']['model_type']} model needs a pipeline tag",
            expected=", ".join(PIPELINE_TAGS),
            found=repr(tag),
        )
    commits = tuple(sorted((base_commits or {}).items()))
    for name, commit in commits:
        if name not in bases or not is_commit(commit):
            raise UsageError("not a commit of a base", expected=f"of {' or '.join(bases)}", found=f"{name}@{commit}")
    return CardFacts(check_repo(repo), tuple(dict.fromkeys(bases)), license, tag, revision, recorded, commits)


def render_card(document: Mapping[str, Any], report: Mapping[str, Any] | None, facts: CardFacts) -> str:
    """The card's text, UTF-8, LF.

    Args:
        document: a parsed `ptq_state.json`.
        report: a parsed `report.json` of the same delta.
    """
    recipe = document["recipe"]
    weight, activation = recipe["weight"]["format"], recipe["activation"]["format"]
    links = [f"[{name}](https://huggingface.co/{name})" for name in facts.base_models]
    size = size_text(document["state"]["size_bytes"])
    sections = [
        f"> Needs its base model {' or '.join(links)}: this is a delta of {size}, not a model. "
        "It restores the quantized model on top of that checkpoint, bit for bit, and refuses any other.",
        f"# {plain(facts.repo.partition('/')[2])}",
        f"{_NAMES[weight]} weights, {_NAMES[activation]} activations (W{_BITS[weight]}A{_BITS[activation]}), made with "
        f"`hfq`, recipe `{recipe['name']}`. " + plain(recipe["description"]),
        "## Restore\n\n" + _restore(facts),
        "## Delta\n\n" + _delta(document, report),
        "## Base\n\n" + _base(document, facts),
        "## Routing\n\n" + _routing(document),
        "## Errors\n\n" + _errors(document, report),
        "## Scores\n\n" + render_recorded(facts.recorded),
    ]
    return _front_matter(document, facts) + "\n" + "\n\n".join(section.strip() for section in sections) + "\n"


def _front_matter(document: Mapping[str, Any], facts: CardFacts) -> str:
    recipe = document["recipe"]
    weight, activation = recipe["weight"]["format"], recipe["activation"]["format"]
    tags = ["hfq", "ptq-delta", "wan", _NAMES[weight].lower(), f"w{_BITS[weight]}a{_BITS[activation]}", recipe["name"]]
    # Every scalar is quoted as JSON, which YAML reads the same: a recipe may be called `null` or `1e3`.
    lines = ["---", "base_model:", *(f"- {json.dumps(name)}" for name in facts.base_models)]
    lines += [f"base_model_relation: {json.dumps(RELATION)}", 'library_name: "hfq"']
    lines += [f"license: {json.dumps(facts.license)}", f"pipeline_tag: {json.dumps(facts.pipeline_tag)}"]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)), "---"]
    return "\n".join(lines) + "\n"


def _restore(facts: CardFacts) -> str:
    revision = f" --revision {facts.revision}" if facts.revision else ""
    return (
        "```sh\n"
        f"hfq pull {facts.repo}{revision} -o delta    # checks every digest\n"
        "hfq verify delta --base MODEL    # MODEL: the base, in any layout; restores every quantized linear\n"
        'hfq generate --base MODEL --delta delta --prompt "..." -o clip.mp4\n'
        "```\n\n"
        "```python\n"
        "import hfq\n\n"
        'hfq.apply(pipeline, hfq.load_delta("delta"))  # a diffusers Wan pipeline of the base\n'
        "```"
    )


def _delta(document: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    recipe, calibration, state = document["recipe"], document["calibration"], document["state"]
    rows = [
        ("id", f"`{document['id']}`"),
        ("weights", _format(recipe["weight"])),
        ("activations", _format(recipe["activation"])),
        ("stages", "; ".join(_stage(stage) for stage in recipe["stage"]) or "none"),
        ("calibration", _calibration(calibration)),
        ("state file", f"{size_text(state['size_bytes'])}, {state['tensors']} tensors, SHA-256 `{state['sha256']}`"),
    ]
    if report is not None and "bits_per_weight" in report:
        rows.append(("restored, packed", _bits(report["bits_per_weight"])))
    return table(("", ""), rows)


def _bits(bits: Mapping[str, Any]) -> str:
    of_quantized = "" if bits["quantized"] is None else f"{bits['quantized']:.4f} bits per quantized weight, "
    return f"{of_quantized}{bits['model']:.4f} bits per weight over the whole model"


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none"
    count = len(calibration["prompts"])
    return f"`{calibration['id'][:12]}`, {count} prompt{'' if count == 1 else 's'}"


def _base(document: Mapping[str, Any], facts: CardFacts) -> str:
    rows = [
        (role, f"`{expert['bf16_root']}`", str(len(expert["tensors"])))
        for role, expert in sorted(document["base"]["experts"].items())
    ]
    text = (
        "The delta is bound to these weights, whatever their layout, sharding or file names: SHA-256 over all tensors, "
        "rounded to BF16."
    )
    lines = [
        f"The files that it was made from lie in [{name}](https://huggingface.co/{name}/tree/{commit}) at commit "
        f"`{commit}`, by SHA-256."
        for name, commit in facts.base_commits
    ]
    named = [name for name in facts.base_models if name not in dict(facts.base_commits)]
    if named:
        lines.append(
            f"That {' or '.join(named)} holds these weights is what the uploader says: its files were not compared "
            "with the base that this delta was made from. `hfq verify` compares."
        )
    return "\n\n".join([text, table(("expert", "bf16 root", "tensors"), rows), *lines])


def _routing(document: Mapping[str, Any]) -> str:
    rows = []
    for role, sites in sorted(document["sites"].items()):
        groups = Counter((entry["rule"], entry["route"], entry["reason"]) for entry in sites.values())
        for key, count in sorted(groups.items()):
            found = {
                match[0]
                for site, entry in sites.items()
                if (entry["rule"], entry["route"], entry["reason"]) == key and (match := _BLOCK.match(site))
            }
            rows.append((role, key[1], str(count), str(len(found)), plain(key[2])))
    return table(("expert", "route", "linears", "blocks", "reason"), rows)


def _errors(document: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "This delta has no `report.json`."
    rows = []
    for role, expert in sorted(report["experts"].items()):
        known = [(entry["weight_nmse"], site) for site, entry in expert["sites"].items()]
        worst = max((pair for pair in known if pair[0] is not None), default=None)
        worst_text = f"`{worst[1]}` {worst[0]:.2e}" if worst else "none"
        rows.append((role, _nmse(expert["weight_nmse"]), _nmse(expert["output_nmse"]), worst_text))
    measured, decided = report.get("measured_with"), document["calibration"]
    note = ""
    if measured is not None and decided is None:
        note = f" Outputs were measured on calibration `{measured['calibration'][:12]}`, which decided nothing."
    experts = table(("expert", "weights", "outputs of linears", "worst weight"), rows)
    warnings = "".join(f"\n- {plain(text)}" for text in report["warnings"])
    return (
        "Normalised mean squared error against the base, measured while converting; `report.json` has every linear."
        f"{note}\n\n{experts}" + (f"\n\nWarnings:\n{warnings}" if warnings else "")
    )


def _format(spec: Mapping[str, Any]) -> str:
    details = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in sorted(spec.items()) if key != "format"]
    return _NAMES[spec["format"]] + (f" ({', '.join(details)})" if details else "")


def _stage(stage: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in sorted(stage.items()) if key != "kind" and not isinstance(value, list | dict)}
    details = ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in shown.items())
    return plain(stage["kind"]) + (f" ({details})" if details else "")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def _nmse(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2e}"
