"""From an Amaranth component to plain, readable Verilog.

Every component becomes one module with its own member names as ports. Amaranth's RTLIL goes
through Yosys' ``proc`` and ``opt_clean``; then empty memories are cleared by a loop and names
become plain identifiers. Memories carry ``no_rw_check``: what a read gives of a word that is being
written is undefined, so that synthesis adds no logic to give the old word. The text depends on
nothing but the component.
"""

import re

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import rtlil
from amaranth.hdl import Fragment
from amaranth.hdl._ir import PortDirection

from rtl_gen.library import ModuleLibrary, flat_ports

_SCRIPT = "proc -noopt\nopt_expr\nopt_clean\nmemory_collect\nopt_clean\nwrite_verilog -noattr\n"
_MODULE = re.compile(r"^module (\w+)(\(.*?^endmodule\n)", re.S | re.M)
_ESCAPED = re.compile(r"\\(\S+) ")
_ZERO_WORD = re.compile(r"^ +(\S+)\[\d+\] = (\d+)'[hd]0+;\n", re.M)
_MEMORY = re.compile(r"^(  reg (?:\[[^\]]*\] )?\w+ \[[^\]]*\];\n)", re.M)
_SYSTEMVERILOG_KEYWORDS = frozenset(
    """accept_on alias always_comb always_ff always_latch assert assume before bind bins binsof bit
    break byte chandle checker class clocking const constraint context continue cover covergroup
    coverpoint cross dist do endchecker endclass endclocking endgroup endinterface endpackage
    endprogram endproperty endsequence enum eventually expect export extends extern final
    first_match foreach forkjoin global iff ignore_bins illegal_bins implements implies import
    inside int interconnect interface intersect join_any join_none let local logic longint matches
    modport nettype new nexttime null package packed priority program property protected pure rand
    randc randcase randsequence ref reject_on restrict return s_always s_eventually s_nexttime
    s_until s_until_with sequence shortint shortreal soft solve static string strong struct super
    sync_accept_on sync_reject_on tagged this throughout timeprecision timeunit type typedef union
    unique unique0 until until_with untyped var virtual void wait_order weak wildcard with
    within""".split()  # noqa: SIM905
)
"""Words of IEEE 1800 that are plain names in the Verilog that Yosys writes."""
_WORD = re.compile(r"\b[a-z_0-9]+\b")
_WIRE_AGAIN = re.compile(r"^  wire (\[[^\]]*\] )?(\w+);\n", re.M)


def _clear_by_loop(body: str) -> str:
    """Replace runs of ``memory[i] = 0;`` by a loop for simulators; synthesis needs no contents."""
    memories: dict[str, list] = {}
    for match in _ZERO_WORD.finditer(body):
        memories.setdefault(match[1], [0, match[2]])[0] += 1
    body = _ZERO_WORD.sub("", body)
    for name, (depth, width) in memories.items():
        loop = (
            f"`ifndef SYNTHESIS\n  integer {name}_word;\n"
            f"  initial for ({name}_word = 0; {name}_word < {depth}; "
            f"{name}_word = {name}_word + 1)\n"
            f"    {name}[{name}_word] = {width}'h0;\n`endif\n"
        )
        body = re.sub(
            rf"( +reg \[[^\]]*\] {re.escape(name)} \[[^\]]*\];\n)  initial begin\n  end\n",
            lambda match, loop=loop: match[1] + loop,
            body,
        )
    return body


def _plain_names(body: str) -> str:
    """Turn escaped identifiers into plain ones, unique within the module."""
    taken = set(re.findall(r"(?<![\\\w.$'])[A-Za-z_]\w*", body))
    renamed: dict[str, str] = {}

    def rename(match: re.Match) -> str:
        name = match[1]
        if name not in renamed:
            stem = re.sub(r"\W+", "_", name).strip("_")
            stem = stem if stem[:1].isalpha() else f"net_{stem}"
            # Yosys escapes a name that is plain already because it is a keyword.
            stem = f"{stem}_" if stem == name else stem
            plain, count = stem, 1
            while plain in taken:
                count += 1
                plain = f"{stem}_{count}"
            taken.add(plain)
            renamed[name] = plain
        return f"\0{renamed[name]} "

    body = _ESCAPED.sub(rename, body)
    return re.sub(r"\0(\w+) (?=[;,)\[\]])", r"\1", body).replace("\0", "")


def _no_keywords(body: str) -> str:
    """Give names that are keywords of SystemVerilog an underscore; many tools read as that."""
    return _WORD.sub(
        lambda m: f"{m[0]}_" if m[0] in _SYSTEMVERILOG_KEYWORDS else m[0],
        body,
    )


def _tidy(body: str) -> str:
    """Plain names, one line per port, no second declaration of a port."""
    body = _MEMORY.sub(r"  (* no_rw_check *)\n\1", _clear_by_loop(_no_keywords(_plain_names(body))))
    header, rest = body.split(");", 1)
    ports = re.findall(r"\w+", header)
    declared = set(ports)
    rest = _WIRE_AGAIN.sub(lambda m: "" if m[2] in declared else m[0], rest)
    listed = ",\n".join(f"  {port}" for port in ports)
    return f" (\n{listed}\n);{rest}"


def convert(component, name: str) -> str:
    """Verilog of a component and everything in it, leaves first.

    Parameters
    ----------
    component
        A :class:`amaranth.lib.wiring.Component`; its members become the ports.
    name
        Name of the top module; all other modules start with it.
    """
    texts: list[str] = []

    def convert_one(part, module: str) -> tuple[bool, bool]:
        ports = {
            port: (value, PortDirection.Output if out else PortDirection.Input)
            for port, out, value in flat_ports(part)
        }
        text = rtlil.convert(
            Fragment.get(part, library), platform=library, name=module, ports=ports, emit_src=False
        )
        texts.append(text)
        top = text[text.rindex(f"module \\{module}\n") :]
        return tuple(
            re.search(rf"^ +wire width 1 input \d+ +\\{port}$", top, re.M) is not None
            for port in ("clk", "rst")
        )

    library = ModuleLibrary(name, convert_one)
    convert_one(component, name)
    yosys = find_yosys(lambda version: version >= (0, 40))
    joined = "\n".join(texts)
    raw = yosys.run(
        ["-q", "-"], f"read_rtlil <<rtlil\n{joined}\nrtlil\n{_SCRIPT}", ignore_warnings=True
    )
    bodies = {match[1]: match[2] for match in _MODULE.finditer(raw)}
    order = [re.findall(r"^module \\(\S+)$", text, re.M)[-1] for text in texts]
    return "\n".join(f"module {module}{_tidy(bodies[module])}" for module in order)
