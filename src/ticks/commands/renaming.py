"""What a package is called elsewhere, although its name may be an everyday word in its repository: a strategy's, say.

The word is the package where the place says so: in Python's imports, before a module of it (`name.data`, `src/name`),
before a command (`name report`), where the program speaks (`name: worker 1 ended`) or marks what is its own
(`name-job-`), in an environment variable (`NAME_CACHE`) and where projects are named: in pyproject.toml, for W&B and
the cache, for runs, above the README. It stays whatever else it is: a value, a key, a variable, a file, a plain word.
"""

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import PurePath

ALONE = r"(?:(?<![\w./-])|(?<=\\n))"  # where a word begins, in a text within a text as well
FIELD = re.compile(r"(?<!\{)(?:\{\{)*\{(?!\{)([^{}]*)")  # of an f-string, what stands in braces
JOINED = r"""["']?\s*/\s*["']?"""  # between two parts of a path: src/name, "src" / "name"


class Renaming:
    """A package's new name in the texts of its repository.

    `modules` are those right inside the package, `commands` what can follow its name on a command line.
    """

    def __init__(self, old: str, new: str, *, modules: Collection[str], commands: Collection[str]) -> None:
        self.old, self.new = old, new
        name, module = f"({old})", rf"(?:{'|'.join(map(re.escape, modules))}|__\w+__)\b"
        command = rf"(?:{'|'.join(map(re.escape, commands))}|help|COMMAND|ARG\w*)\b"
        everywhere = (
            rf"{ALONE}{name}(?=\\{{0,2}}\.{module})",
            rf"(?<![\w-]){name}(?=/{module})",
            rf"(?:\bsrc|\.cache|_CACHE_HOME){JOINED}{name}\b",
            rf"\bfrom {name} import\b|\bimport {name}\b",
            rf"""-m["',\s]+{name}\b""",
            rf"(?:(?<!\w)|(?<=\\n))({old.upper()})(?=_[A-Z])",
            rf"{ALONE}(?<!=){name}(?= {command})",
            rf"`{name}` command",
            rf"(?:\bbin|\$\(BIN\))/{name}\b",
            rf"""["']{name}["'], \(?["']{command}""",
            rf"""\bprog(?:ram)?(?:=|: str = | [=!]= )["']{name}["']""",
            rf"""["'`^]\.?{name}(?=:[ "']|-[a-z{{"'])""",
            rf"""\bproject(?:: str = |: |=)["']?{name}\b""",
        )
        somewhere = {
            "README.md": (rf"\A# {name}\b",),
            "pyproject.toml": (rf"^{name}(?= = )", rf"""["']{name}["']"""),
            "configs/*.yaml": (rf"""^name: ["']?{name}\b""",),
        }
        self._everywhere = re.compile("|".join(everywhere))
        self._somewhere = {files: re.compile("|".join(more), re.MULTILINE) for files, more in somewhere.items()}

    def path(self, path: PurePath) -> PurePath:
        """Where a file of the repository lies in the other one."""
        ours = path.parts[:2] == ("src", self.old)
        return PurePath("src", self.new, *path.parts[2:]) if ours else path

    def text(self, path: PurePath, text: str) -> str:
        """What a file of the repository says in the other one. SyntaxError for Python that is none."""
        patterns = [self._everywhere, *(more for files, more in self._somewhere.items() if path.match(files))]
        places = {place for pattern in patterns for place in _places(pattern, text)}
        if path.suffix == ".py":
            names, package = self._in_code(text)
            places = places - names | package
        for place in sorted(places, reverse=True):
            end = place + len(self.old)
            new = self.new if text[place:end] == self.old else self.new.upper()
            text = text[:place] + new + text[end:]
        return text

    def _in_code(self, text: str) -> tuple[set[int], set[int]]:
        """Where names of Python's, not texts or comments, begin with the word, and where it is the package."""
        nodes, lines = list(ast.walk(ast.parse(text))), io.StringIO(text).readlines()
        starts = [0, *accumulate(map(len, lines))]
        names: set[int] = set()
        in_texts: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start = starts[token.start[0] - 1] + token.start[1]
            if token.type == tokenize.NAME and re.match(rf"{self.old}\Z|{self.old.upper()}_", token.string):
                names.add(start)
            elif token.type == tokenize.STRING and re.match("[rR]?[fF]", token.string):  # until Python 3.11
                for field in FIELD.finditer(token.string):
                    within = re.finditer(rf"""(?<![\w.'"]){self.old}\b(?!['"])""", field[1])
                    in_texts.update(start + field.start(1) + match.start() for match in within)

        def place(node: ast.stmt | ast.expr | ast.alias) -> int:
            line = lines[node.lineno - 1].encode()
            return starts[node.lineno - 1] + len(line[: node.col_offset].decode())

        package, imported = set(), False
        for node in nodes:
            match node:
                case ast.ImportFrom(module=str(module), level=0) if self._is_package(module):
                    package.add(text.index(self.old, place(node) + len("from")))
                case ast.Import(names=aliases):
                    ours = [alias for alias in aliases if self._is_package(alias.name)]
                    package.update(map(place, ours))
                    imported |= any(alias.asname is None for alias in ours)
        if imported:  # then the word alone is the package as well
            alone = {place(node) for node in nodes if isinstance(node, ast.Name) and node.id == self.old}
            package |= in_texts | names & alone
        return names | in_texts, package

    def _is_package(self, module: str) -> bool:
        return module.partition(".")[0] == self.old


def _places(pattern: re.Pattern[str], text: str) -> Iterator[int]:
    """Where the word begins that the pattern has in its only group, of whichever alternative."""
    return (match.start(match.lastindex or 0) for match in pattern.finditer(text))
