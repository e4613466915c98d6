"""What a compiled program moves, computes and communicates, read from XLA's text of it.

XLA's own `cost_analysis` counts the body of a loop once, and a fusion that reads one layer of a stack as if it read all
of them. Here every instruction that runs as a kernel of its own is one `Operation`, with the loops it stands in:

- An instruction reads its operands and writes its result, each once; what it uses in between stays on the chip.
- Where a fusion uses an operand only to cut a slice or gather rows from it, these are what it reads. Where its result is
  an operand with a slice replaced (an append to a cache, a layer's place in a stack), it writes the slice, in place.
- A loop that counts says how often it runs (`known_trip_count`); how often another runs depends on data.
- An instruction that only moves, cuts, joins or converts what it reads is a copy.

Everything is of one device. A fused attention of cuDNN moves its operands and result; its FLOPs are not counted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done", "domain", "add-dependency",
}  # fmt: skip
_VIEWS = {"bitcast", "reshape", "copy", "convert", "transpose"}  # one element of the result for each of the operand
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # done in place; the number of the operand with the new part
_MOVES = _VIEWS | {"slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "broadcast", "pad", "reverse"}
_COPIES = (_MOVES - {"bitcast", "broadcast", "reshape"}) | {"copy-start"}
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_START = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")


@dataclass(frozen=True)
class Array:
    """Element type, as XLA writes it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> float:
        """Bytes of an element; 0 for tokens."""
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) / 8 if bits else float(self.dtype == "pred")

    @property
    def bytes(self) -> float:
        return self.size * self.itemsize


@dataclass(frozen=True)
class Operation:
    """An instruction of a program that runs as a kernel of its own, or as a communication.

    Attributes:
      name, opcode: as in the text; the opcode of an asynchronous pair is that of its start without `-start`.
      bytes: read and written in one execution. flops: of matrix products, multiplications and additions.
      loops: number of iterations of each loop around it, the outermost first; None where it depends on data.
      copies: nothing is computed.
      source: name of the program's argument that it copies or communicates, or whose newest version; None if computed.
      devices: how many take part in a collective. payload: bytes that it gathers, or adds up, or exchanges.
    """

    name: str
    opcode: str
    bytes: float
    flops: float
    loops: tuple[int | None, ...]
    copies: bool
    source: str | None
    devices: int = 1
    payload: float = 0.0

    def times(self, trips: int) -> int:
        """Number of executions, if loops whose length depends on data run `trips` times."""
        return prod(trips if length is None else length for length in self.loops)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a collective on a ring, or to another device."""
        if self.opcode == "collective-permute":
            return self.payload
        rounds = 2 if self.opcode == "all-reduce" else 1
        return rounds * self.payload * (self.devices - 1) / max(self.devices, 1)


@dataclass(frozen=True)
class _Instruction:
    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    inside: str  # of the parentheses: the number of a parameter

    def called(self, key: str) -> str:
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        assert found is not None, f"{self.name} has no {key}"
        return found[1]

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def size(self) -> int:
        return max((array.size for array in self.arrays), default=0)


@dataclass
class _Computation:
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""

    @property
    def parameters(self) -> list[_Instruction]:
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.inside))

    def users(self) -> dict[str, list[_Instruction]]:
        users: dict[str, list[_Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users

    def behind_views(self, name: str) -> _Instruction:
        """The instruction whose elements this one shows."""
        found = self.instructions[name]
        while found.opcode in _VIEWS:
            found = self.instructions[found.operands[0]]
        return found


@dataclass(frozen=True)
class _Kernel:
    """A fused computation: bytes read of each parameter, bytes written, FLOPs, and whether it only copies."""

    reads: tuple[float, ...]
    writes: float
    flops: float
    copies: bool


Labels = tuple[str | None, ...]  # of each array of a value: the argument that it is, or None where it was computed


def operations(text: str) -> tuple[Operation, ...]:
    """The operations of a compiled program, from `compiled.as_text()`, in the order in which they are scheduled."""
    return _Program(text).operations()


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, _Computation] = {}
        self.kernels: dict[str, _Kernel] = {}
        self.entry = ""
        for line in text.splitlines():
            if line.endswith("{") and " -> " in line and not line.startswith((" ", "\t")):
                name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
                current = self.computations[name] = _Computation()
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif self.computations and (found := _START.match(line)):
                instruction = _instruction(found[2], line[found.end() :])
                current.instructions[instruction.name] = instruction
                current.root = instruction.name if found[1] else current.root
        parameters = text[: text.find("\n")]
        partitions = re.search(r"num_partitions=(\d+)", parameters), re.search(r"replica_count=(\d+)", parameters)
        self.devices = prod(int(found[1]) for found in partitions if found)

    def operations(self) -> tuple[Operation, ...]:
        found: list[Operation] = []
        arguments = []
        for parameter in self.computations[self.entry].parameters:
            name = re.search(r'op_name="([^"]*)"', parameter.attributes)
            label = name[1].replace("\\'", "'") if name else parameter.name
            arguments.append((label,) * len(parameter.arrays))
        self._run(self.entry, arguments, (), found)
        return tuple(found)

    def _run(
        self, name: str, inputs: Sequence[Labels], loops: tuple[int | None, ...], found: list[Operation]
    ) -> Labels:
        """Appends the operations of a computation, and returns the labels of its result."""
        computation, values = self.computations[name], dict[str, Labels]()
        for instruction in computation.instructions.values():
            given = [values[operand] for operand in instruction.operands]
            result: Labels = (None,) * len(instruction.arrays)
            opcode = instruction.opcode
            if opcode == "parameter":
                result = inputs[int(instruction.inside)]
            elif opcode == "tuple":
                result = tuple(label for labels in given for label in labels)
            elif opcode == "get-tuple-element":
                index = int(instruction.attributes.partition("index=")[2].partition(",")[0])
                element = given[0][index : index + 1]
                result = element if len(result) == 1 else result
            elif opcode == "while":
                result = self._loop(instruction, given[0], loops, found)
            elif opcode == "conditional":
                self._longest_branch(instruction, given, loops, found)
            elif opcode == "call" or (opcode == "async-start" and "calls=" in instruction.attributes):
                called = instruction.called("to_apply" if opcode == "call" else "calls")
                result = self._run(called, given, loops, found)
            elif opcode.endswith("-done") or opcode in ("bitcast", "optimization-barrier"):
                result = given[0] if len(given[0]) == len(result) else (given[0][:1] or (None,)) * len(result)
            elif opcode not in _FREE:
                operation = self._operation(instruction, computation, given, loops)
                found.append(operation)
                if operation.copies or operation.payload:
                    result = (operation.source,) * len(result)
            values[instruction.name] = result
        return values[computation.root]

    def _loop(self, loop: _Instruction, start: Labels, loops: tuple[int | None, ...], found: list[Operation]) -> Labels:
        length = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.attributes)
        # A carried value that starts as an argument is its newest version afterwards.
        self._run(loop.called("body"), [start], (*loops, int(length[1]) if length else None), found)
        return start

    def _longest_branch(
        self, chosen: _Instruction, given: Sequence[Labels], loops: tuple[int | None, ...], found: list[Operation]
    ) -> None:
        listed = re.search(r"branch_computations=\{([^}]*)\}", chosen.attributes)
        names = _NAME.findall(listed[1]) if listed else [chosen.called(f"{w}_computation") for w in ("true", "false")]
        branches: list[list[Operation]] = []
        for name, labels in zip(names, given[1:], strict=True):
            branches.append([])
            self._run(name, [labels], loops, branches[-1])

        def moved(branch: list[Operation]) -> float:
            """Bytes of one execution of the branch; a loop whose length depends on data counts once."""
            inner = [(operation.bytes, operation.loops[len(loops) :]) for operation in branch]
            return sum(size * prod(1 if length is None else length for length in own) for size, own in inner)

        found += max(branches, key=moved)

    def _operation(
        self,
        instruction: _Instruction,
        computation: _Computation,
        given: Sequence[Labels],
        loops: tuple[int | None, ...],
    ) -> Operation:
        operands = [computation.instructions[name] for name in instruction.operands]
        opcode, arrays = instruction.opcode.removesuffix("-start"), instruction.arrays
        copies, flops = instruction.opcode in _COPIES, 0.0
        payload, devices = 0.0, 1
        if opcode == "fusion":
            kernel = self._kernel(instruction.called("calls"))
            moved, flops, copies = sum(kernel.reads) + kernel.writes, kernel.flops, kernel.copies
        elif opcode in COLLECTIVES:
            if instruction.opcode.endswith("-start") and opcode != "all-reduce":
                arrays = arrays[len(operands) : 2 * len(operands)]  # of a pair (operands, results)
            read, written = sum(o.bytes for o in operands), sum(array.bytes for array in arrays)
            moved, payload, devices = read + written, max(read, written), self._group(instruction)
        elif opcode in _SLICES:
            moved = 2 * instruction.bytes
        elif opcode in _UPDATES:
            moved = 2 * operands[_UPDATES[opcode]].bytes
        else:
            if opcode in ("copy", "custom-call"):
                arrays = arrays[:1] if instruction.opcode == "copy-start" else _without_workspace(arrays)
            moved = sum({o.name: o.bytes for o in operands}.values()) + sum(array.bytes for array in arrays)
            flops = _flops(instruction, computation.instructions)
        largest = max(range(len(operands)), key=lambda place: operands[place].bytes, default=None)
        source = given[largest][0] if largest is not None and len(given[largest]) == 1 else None
        return Operation(
            instruction.name, opcode, moved, flops, loops, copies, source, devices, payload
        )  # fmt: skip

    def _group(self, instruction: _Instruction) -> int:
        """The number of devices among which a collective runs."""
        if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction.attributes):
            return int(found[1])
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", instruction.attributes):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
            # A part of an axis is written 'axis':(devices before it)its devices.
            return prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]))
        found = re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.attributes)
        return len(found[1].split(",")) if found else self.devices

    def _kernel(self, name: str) -> _Kernel:
        if name not in self.kernels:
            self.kernels[name] = self._measured(self.computations[name])
        return self.kernels[name]

    def _measured(self, computation: _Computation) -> _Kernel:
        users, inside = computation.users(), computation.instructions.values()
        inner = {i.name: self._kernel(i.called("calls")) for i in inside if i.opcode == "fusion"}

        def read(value: _Instruction, itemsize: float) -> float:
            total = 0.0
            for user in users[value.name]:
                places = [place for place, operand in enumerate(user.operands) if operand == value.name]
                if user.opcode in _SLICES and places == [0]:
                    total += user.size * itemsize
                elif user.opcode in _UPDATES and places == [0]:
                    continue
                elif user.opcode in _VIEWS or (user.opcode == "tuple" and value.opcode != "parameter"):
                    total += read(user, itemsize) if user.opcode != "tuple" else value.size * itemsize
                elif user.name in inner:
                    total += sum(inner[user.name].reads[place] for place in places)
                else:
                    return value.size * itemsize
            if value.name == computation.root and value.opcode not in _UPDATES:
                total += value.size * itemsize
            return min(total, value.size * itemsize)

        reads = [
            min(read(p, p.arrays[0].itemsize), p.bytes) if len(p.arrays) == 1 else p.bytes
            for p in computation.parameters
        ]  # fmt: skip
        root = computation.instructions[computation.root]
        writes = 0.0
        for name in root.operands if root.opcode == "tuple" else (root.name,):
            written = computation.behind_views(name)
            place = _UPDATES.get(written.opcode)
            if place is not None and computation.behind_views(written.operands[0]).opcode == "parameter":
                writes += computation.instructions[written.operands[place]].bytes
            elif written.name in inner:
                writes += min(inner[written.name].writes, computation.instructions[name].bytes)
            elif computation.instructions[name].opcode != "get-tuple-element" or root.opcode != "tuple":
                writes += sum(array.bytes for array in _without_workspace(computation.instructions[name].arrays))
            else:  # of a library's kernel, fused with slices of what it reads
                writes += sum(
                    array.bytes for array in computation.instructions[name].arrays if not _is_workspace(array)
                )
        work = [i for i in inside if i.size > 1 and i.opcode not in _FREE and i.opcode != "iota"]
        copies = any(i.opcode in _COPIES for i in work) and any(r > 16 for r in reads)
        copies = copies and all(inner[i.name].copies if i.name in inner else i.opcode in _MOVES for i in work)
        flops = sum(_flops(i, computation.instructions) for i in inside) + sum(
            kernel.flops for kernel in inner.values()
        )
        return _Kernel(tuple(reads), writes, flops, copies)


def _without_workspace(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The results of a library's kernel without its scratch memory, which is given as bytes."""
    return tuple(array for array in arrays if not _is_workspace(array)) if len(arrays) > 1 else arrays


def _is_workspace(array: Array) -> bool:
    return array.dtype in ("s8", "u8")


def _flops(instruction: _Instruction, known: Mapping[str, _Instruction]) -> float:
    """FLOPs of a matrix product, 0 for anything else."""
    if instruction.opcode != "dot" and "dot_dimension_numbers" not in instruction.attributes:
        return 0.0
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[:=][\[{]([\d,"]*)[\]}]', instruction.attributes)
    left = known[instruction.operands[0]].arrays[0].shape
    axes = re.findall(r"\d+", found[1]) if found else []
    return 2.0 * instruction.arrays[0].size * prod(left[int(axis)] for axis in axes)


def _instruction(name: str, text: str) -> _Instruction:
    """From the text behind `name = `: the type of the result, `opcode(operands)`, attributes."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].lstrip().partition("(")
    close = _closing("(" + rest) - 2
    inside = rest[:close]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    arrays = tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in shape.split(",") if size))
        for dtype, shape in _ARRAY.findall(text[:end])
    )
    return _Instruction(name, arrays, opcode, operands, rest[close + 1 :], inside)


def _closing(text: str) -> int:
    """The place behind the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
