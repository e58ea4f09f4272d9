"""Starts the Wolfpine Wormhole server with corrections for instructions that TTNN kernels use.

    server.py [--without NAME]... [options of framework.sim.wormhole]

Wolfpine 2.2 models what its own examples need. TTNN's kernels need a little more; each correction
below replaces one method, so that an upstream fix can be adopted by deleting the function here.
--without NAME leaves one out, to see whether a newer release still needs it."""
import ctypes
import os
import signal
import sys
from contextlib import contextmanager
from enum import IntEnum
import numpy as np
from framework.network import tt_noc
from framework.pe.rv.isa.m_isa import RV_M_ISA
from framework.pe.rv.isa.rv_isa import RV_ISA
from framework.pe.tensix.backends import matrix
from framework.pe.tensix.backends.misc import MiscellaneousUnit
from framework.pe.tensix.backends.packer import PackerUnit
from framework.pe.tensix.backends.unpacker import UnPackerUnit
from framework.pe.tensix.backends.vector import VectorUnit
from framework.pe.tensix.backends.backend_base import DataFormat
from framework.util.conversion import conv_to_bytes


def division():
    """RISC-V division never traps: x/0 is all ones, x%0 is x, and the remainder takes the
    dividend's sign."""
    original = RV_M_ISA.run.__func__

    def run(cls, register_file, memory_space, snoop, instr=None):
        if instr is None:
            instr = cls.fetch(register_file, memory_space)
        kind = (instr >> 12) & 7
        if instr & 0x7F != 0x33 or (instr >> 25) & 0x7F != 1 or kind < 4:
            return original(cls, register_file, memory_space, snoop, instr)
        signed = kind in (4, 6)
        read = lambda r: register_file[r].read_int() if signed else register_file[r].read_uint()
        a, b = read((instr >> 15) & 31), read((instr >> 20) & 31)
        if b == 0:
            q, r = -1, a
        else:
            q = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            r = a - q * b
        result = (q if kind < 6 else r) & 0xFFFFFFFF
        register_file[(instr >> 7) & 31].write(conv_to_bytes(result, signed=False))
        return True

    RV_M_ISA.run = classmethod(run)


class AccumulatingMemory:
    """Adds what the packer writes to what L1 holds, in the output format."""

    def __init__(self, memory):
        self.memory = memory

    def read(self, *a):
        return self.memory.read(*a)

    def write(self, addr, data):
        n = len(data)
        old = int.from_bytes(bytes(self.memory.read(addr, n)), "little")
        new = int.from_bytes(bytes(data), "little")
        shift = 0 if n == 4 else 16
        f = lambda u: np.uint32(u << shift).view(np.float32)
        total = int((f(old) + f(new)).astype(np.float32).view(np.uint32))
        if shift:
            total = (total + 0x7FFF + ((total >> 16) & 1)) >> 16
        self.memory.write(addr, conv_to_bytes(total & (0xFFFFFFFF >> shift), n))


def l1_accumulation():
    """The packer adds to L1 where the kernel says so (packer_l1_acc)."""
    original = PackerUnit.handle_pacr

    def pack(self, instruction_info, issue_thread, instr_args):
        state = self.backend.getThreadConfigValue(issue_thread, "CFG_STATE_ID_StateID")
        on = self.getConfigValue(state, "THCON_SEC0_REG1_Pack_L1_Acc")
        if not on:
            return original(self, instruction_info, issue_thread, instr_args)
        memory = self.backend.addressable_memory
        self.backend.addressable_memory = AccumulatingMemory(memory)
        try:
            return original(self, instruction_info, issue_thread, instr_args)
        finally:
            self.backend.addressable_memory = memory

    PackerUnit.handle_pacr = pack


def block_float_unpack():
    """BFP8: one exponent byte per 16 datums, sign and 7 magnitude bits each; becomes BF16 on the
    way into SrcA and SrcB."""
    addresses = UnPackerUnit.generate_input_addresses_and_sizes
    read_state = UnPackerUnit.read_unpack_state
    perform, convert = UnPackerUnit.perform_unpack_state, UnPackerUnit.formatConversion

    def generate(self, *a, **k):
        r = list(addresses(self, *a, **k))
        if r[9] == DataFormat.BFP8_b:  # a tile: 64 exponents, then 1024 datums
            base, group = r[0] - 16 * r[4], r[4]
            r[0], self._exponents = r[0] + 64, base + group
        return tuple(r)

    def read_unpack_state(self, *a, **k):
        s = read_state(self, *a, **k)
        s["exponents"] = getattr(self, "_exponents", 0)
        return s

    def perform_unpack_state(self, issue_thread, state):
        self._current_exponents = state["exponents"]
        return perform(self, issue_thread, state)

    def format_conversion(self, state, fin, fout, raw, to_dst):
        if fin != DataFormat.BFP8_b:
            return convert(self, state, fin, fout, raw, to_dst)
        n = len(raw)
        memory = self.backend.addressable_memory
        e = np.frombuffer(memory.read(self._current_exponents, (n + 15) // 16), np.uint8)
        e = np.repeat(e.astype(np.int64), 16)[:n]
        mag, sign = raw & 0x7F, (raw >> 7) & 1
        shift = 6 - np.where(mag > 0, np.floor(np.log2(np.maximum(mag, 1))).astype(np.int64), 6)
        normal = ((e - shift) << 7) | (((mag << shift) & 0x3F) << 1)
        bf16 = np.where((mag == 0) | (e <= shift), 0, normal) | (sign << 15)
        return convert(self, state, DataFormat.BF16, DataFormat.BF16, bf16, to_dst)

    UnPackerUnit.generate_input_addresses_and_sizes = generate
    UnPackerUnit.read_unpack_state = read_unpack_state
    UnPackerUnit.perform_unpack_state = perform_unpack_state
    UnPackerUnit.formatConversion = format_conversion


def address_counters():
    """SETADCZW sets Z and W (and their carry registers) separately."""

    def set_counters(self, instruction_info, issue_thread, instr_args):
        packed = instr_args["Ch1_Y"]
        values = (instr_args["Ch0_X"], instr_args["Ch0_Y"], instr_args["Ch1_X"], packed & 7)
        override = (packed >> 3) & 3
        adc = self.backend.getADC(override - 1 if override else issue_thread)
        for bit, unit in enumerate((adc.Unpacker[0], adc.Unpacker[1], adc.Packers)):
            if not (instr_args["CntSetMask"] >> bit) & 1:
                continue
            for i, value in enumerate(values):
                if (instr_args["BitMask"] >> i) & 1:
                    channel, axis = unit.Channel[i // 2], "ZW"[i % 2]
                    setattr(channel, axis, value)
                    setattr(channel, axis + "_Cr", value)

    MiscellaneousUnit.handle_setadczw = set_counters


def source_rows():
    """With explicit output addresses (every current kernel) the SrcB row comes from the address
    alone."""
    original = UnPackerUnit.flip_src_banks

    def flip_src_banks(self, flip, issue_thread, *a, **k):
        row = self.srcRow[issue_thread]
        original(self, flip, issue_thread, *a, **k)
        if not flip and self.unpacker_id == 1:
            self.srcRow[issue_thread] = row

    UnPackerUnit.flip_src_banks = flip_src_banks


def block_float_names():
    """Formats 6, 7 and 15 carry 8-bit exponents and behave as BF16 in the matrix unit; 2, 3 and
    11 as FP16."""
    codes = {name: f.value for name, f in DataFormat.__members__.items()}
    for n in ("BFP8", "BFP4", "BFP2"):
        codes[n], codes[n + "_b"] = codes[n + "_b"], codes[n]
    matrix.DataFormat = IntEnum("DataFormat", codes)


@contextmanager
def replaced(thing, **values):
    """Sets attributes of one instance for the length of a block."""
    before = {k: vars(thing)[k] for k in values if k in vars(thing)}
    vars(thing).update(values)
    try:
        yield
    finally:
        for k in values:
            del vars(thing)[k]
        vars(thing).update(before)


def multicast_source():
    """A multicast whose rectangle covers its sender reaches the sender only when the command asks
    for it (bit 17). Otherwise the sender counts one acknowledgement too many and waits for ever
    (linears with one row of tiles)."""
    initiator = tt_noc.NUI.RequestInitiator
    original, rectangle = initiator.handle_multicast_write_transfer, tt_noc.rectangle_destinations

    def multicast(self, *a):
        def others(*corners):
            cells = rectangle(*corners)
            if self.ctrl >> 17 & 1:
                return cells
            return [c for c in cells if self.nui.resolve_destination(c) is not self.nui]

        tt_noc.rectangle_destinations = others
        try:
            return original(self, *a)
        finally:
            tt_noc.rectangle_destinations = rectangle

    initiator.handle_multicast_write_transfer = multicast


def uint16_load():
    """SFPLOAD in UINT16 mode reads 16 bits of Dst and extends them with zeros (pad's fill)."""
    original = VectorUnit.handle_sfpload

    def load(self, instruction_info, issue_thread, instr_args):
        _, mode = self.get_dst_address(issue_thread, instr_args["instr_mod0"], 0)
        if mode != self.MOD0_FMT_UINT16:
            return original(self, instruction_info, issue_thread, instr_args)
        low_half = dict(instr_args, instr_mod0=self.MOD0_FMT_LO16_ONLY)
        original(self, instruction_info, issue_thread, low_half)
        register = self.lregs[instr_args["lreg_ind"]]
        for lane in range(32):
            if self.isLaneEnabled(lane):
                register[lane] = register[lane] & 0xFFFF

    VectorUnit.handle_sfpload = load


def packer_relu():
    """The packer's ReLU turns negative datums into zero: the approximate exponential of attention
    relies on it."""
    original = PackerUnit.handle_pacr

    def pack(self, instruction_info, issue_thread, instr_args):
        state = self.backend.getThreadConfigValue(issue_thread, "CFG_STATE_ID_StateID")
        mode = self.getConfigValue(state, "STACC_RELU_ApplyRelu")
        if mode == 0:
            return original(self, instruction_info, issue_thread, instr_args)
        if mode > 1:
            raise NotImplementedError(f"packer ReLU mode {mode} (with a threshold)")
        convert = self.formatConversion

        def relu(state, fin, fout, raw, read32b=False):
            datum = convert(state, fin, fout, raw, read32b)
            return 0 if datum >> (31 if fout == DataFormat.FP32 else 15) & 1 else datum

        with replaced(self, formatConversion=relu):
            return original(self, instruction_info, issue_thread, instr_args)

    PackerUnit.handle_pacr = pack


class Collector:
    """Stands in for L1 while the packer writes FP32, and keeps the datums."""

    def __init__(self, memory):
        self.memory, self.datums = memory, []

    def read(self, *a):
        return self.memory.read(*a)

    def write(self, addr, data):
        self.datums.append(int.from_bytes(bytes(data), "little"))


def write_blocks(memory, config, state, name, packer, datums, new_tile):
    """Rounds FP32 datums to blocks of 16 and writes exponents and magnitudes to their places."""
    start = packer.byteAddress - 4 * len(datums)
    packer.tile = start if new_tile else packer.tile
    first = (start - packer.tile) // 4
    if len(datums) % 16 or first % 16:
        raise NotImplementedError("BFP8 packing of part of a block")
    if not datums:
        return
    u = np.array(datums, np.int64).reshape(-1, 16)
    e, m = (u >> 23) & 255, (u & 0x7FFFFF) | 0x800000
    top = e.max(1, keepdims=True)
    shift = np.minimum(17 + top - e, 40)
    magnitude = np.minimum((np.where(e == 0, 0, m) + (1 << (shift - 1))) >> shift, 127)
    packed = np.where(magnitude == 0, 0, (u >> 31) << 7) | magnitude
    exponents = 16 * config(state, name + "Exp_section_size")
    memory.write(packer.tile + first // 16, bytes(top.astype(np.uint8)))
    memory.write(packer.tile + exponents + first, bytes(packed.astype(np.uint8)))


def block_float_pack():
    """BFP8 output: per 16 datums one exponent byte, and a byte of sign and 7 magnitude bits each,
    ties away from zero. A 32-bit Dst is first rounded to 7 significant bits, datum by datum; a
    16-bit one is not."""
    original = PackerUnit.handle_pacr

    def pack(self, instruction_info, issue_thread, instr_args):
        state = self.backend.getThreadConfigValue(issue_thread, "CFG_STATE_ID_StateID")
        active = self.participating_packers(instr_args["PackSel"])
        names = [self.getIPackerConfig(i, 4, 1, 8) for i in active]
        config, convert = self.getConfigValue, self.formatConversion
        memory = self.backend.addressable_memory
        if config(state, names[0] + "Out_data_format") != DataFormat.BFP8_b.value:
            return original(self, instruction_info, issue_thread, instr_args)
        if config(state, "THCON_SEC0_REG1_Pack_L1_Acc"):
            raise NotImplementedError("L1 accumulation in BFP8")

        def as_fp32(state, key):
            value = config(state, key)
            block_float = key.endswith("Out_data_format") and value == DataFormat.BFP8_b.value
            return DataFormat.FP32.value if block_float else value

        def from_block_float(state, fin, fout, raw, read32b=False):
            if fin != DataFormat.BFP8_b:
                return convert(state, fin, fout, raw, read32b)
            wide = DataFormat.FP32 if read32b else DataFormat.BF16
            datum = convert(state, wide, fout, raw, read32b)
            return datum + 0x10000 & ~0x1FFFF if read32b else datum

        new_tile = [self.packerI[i].datastreamNeedsNewAddr for i in active]
        collector = Collector(memory)
        with replaced(self, getConfigValue=as_fp32, formatConversion=from_block_float), \
                replaced(self.backend, addressable_memory=collector):
            original(self, instruction_info, issue_thread, instr_args)
        for i, name, new in zip(active, names, new_tile):
            n = self.packerI[i].inputNumDatums
            datums, collector.datums = collector.datums[:n], collector.datums[n:]
            write_blocks(memory, config, state, name, self.packerI[i], datums, new)

    PackerUnit.handle_pacr = pack


FIXES = (
    block_float_names, source_rows, address_counters, division, l1_accumulation, block_float_unpack,
    multicast_source, uint16_load, packer_relu, block_float_pack,
)


def end_with_parent():
    """The library starts the simulator as a session of its own and does not end it when it ends
    itself; the kernel does (prctl PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the program that started the simulator has ended")


def main(arguments):
    end_with_parent()
    without = set()
    while arguments[:1] == ["--without"]:
        without.add(arguments[1])
        arguments = arguments[2:]
    names = {fix.__name__ for fix in FIXES}
    if without - names:
        sys.exit(f"--without {', '.join(without - names)}: the corrections are {sorted(names)}")
    for fix in FIXES:
        if fix.__name__ not in without:
            fix()
    from framework.sim.wormhole import __main__ as server
    return server.main(arguments)


sys.exit(main(sys.argv[1:]))
