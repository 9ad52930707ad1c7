"""The files of a run that a page shows: missing ones are left out, damaged ones remarked on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.atomic import parse_json, read_text
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import migrated


@dataclass
class RunFiles:
    """The content of a run folder.

    Attributes:
        name: of the folder.
        config: of config.json; {} if there is none.
        description: of encoder.json; {} if there is none.
        evaluation: of evaluation.json, its settings in today's form; {} if there is none.
        found: of found.json, what the run found before its first step; {} if there is none.
        rows: of metrics.jsonl.
        bad: id and reason of quarantined samples.
        pictures: PNG bytes by name, in the page's order.
        remarks: sentences for the reader.
        label: its name, or more of its path if a page has two of that name.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    label: str = ""

    def __post_init__(self) -> None:
        self.label = self.label or self.name


WHILE_TRAINING = ("reconstruction",)  # pictures of `vitrail pretrain`, first on the page
PICTURE_LIMIT = 12_000_000  # bytes of a file that is worth reading
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_run(run: Path) -> RunFiles:
    """Reads what a run has written so far.

    Raises:
        ValueError: no such folder, or one that is not a run.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}; start one with `vitrail pretrain`")
    known = ("config.json", "metrics.jsonl", "encoder.json", "evaluation.json")
    if not any((run / name).exists() for name in known):
        raise ValueError(f"{run} holds no run: none of {', '.join(known)} is in it")
    files = RunFiles(run.resolve().name)
    files.config = _read_object(run / "config.json", files.remarks)
    files.description = _read_object(run / "encoder.json", files.remarks)
    files.evaluation = _read_object(run / "evaluation.json", files.remarks)
    notes = files.config.get("notes")
    files.remarks += [f"Note: {note}." for note in notes] if isinstance(notes, list) else []
    files.remarks += _changes(files.config.get("changes"))
    if "settings" in files.evaluation:
        files.evaluation["settings"] = migrated(files.evaluation["settings"])
    files.found = _read_object(run / "found.json", files.remarks)
    files.rows = _read_lines(run / "metrics.jsonl", files.remarks)
    reasons: dict[str, str] = {}  # two ranks may have written the same sample; the first counts
    for row in _read_lines(run / "quarantine.jsonl", files.remarks):
        reasons.setdefault(str(row.get("id")), str(row.get("reason")))
    files.bad = list(reasons.items())
    drawn = [name for name, row in PROTOCOLS.items() if row.figure]
    for name in (*WHILE_TRAINING, *drawn):
        path = run / "figures" / f"{name}.png"
        if not path.is_file():
            continue
        if path.stat().st_size > PICTURE_LIMIT:
            files.remarks.append(f"figures/{name}.png is too large for this page and is left out")
            continue
        picture = path.read_bytes()
        if len(picture) < 24 or not picture.startswith(SIGNATURE):
            files.remarks.append(f"figures/{name}.png is not a PNG picture and is left out")
            continue
        files.pictures[name] = picture
    return files


def _changes(entries: Any) -> list[str]:
    """Returns a remark on each change of a run by `vitrail resume`."""
    remarks = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("to"), dict):
            was = entry.get("from")
            before = was if isinstance(was, dict) else {}
            fields = (f"{k} from {before.get(k)} to {v}" for k, v in entry["to"].items())
            remarks.append(f"After step {entry.get('step')} it was changed: {', '.join(fields)}.")
    return remarks


def _read_object(path: Path, remarks: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error})")
        return {}
    if isinstance(value, dict):
        return value
    remarks.append(f"{path.name} does not hold what it should and is left out")
    return {}


def _read_lines(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file; a last line that was cut short is no damage."""
    if not path.exists():
        return []
    rows, broken = [], []
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error})")
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            broken.append(number)
            continue
        if isinstance(value, dict):
            rows.append(value)
    inner = [number for number in broken if number != len(lines)]
    if inner:
        remarks.append(f"{path.name}: {len(inner)} damaged lines are left out (first: {inner[0]})")
    return rows
