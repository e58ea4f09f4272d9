"""Brings packed bytes to the device through the library's own tensor file.

A file is a header that the library writes for an empty tensor of the same kind, and our payload. It
lies in the shared memory, where tendon has put the payload already: nothing is copied here.
"""
import importlib
import os
import struct

SHARED = 4  # its descriptor, see worker_process.cc
HEADER_BYTES = 4096  # the library's header is stretched to this; the payload follows
SAMPLE, OTHER = (1, 3, 64, 96), (1, 2, 33, 40)  # dims; their order is found nowhere else
BFP8, U32 = 1, 2  # formats, as in tt_api.h
TILE_BYTES = (2048, 1088, 4096)


def payload_bytes(format, layout, dims):
    if layout:
        return dims[0] * dims[1] * dims[2] * dims[3] * TILE_BYTES[format] // 1024
    return dims[0] * dims[1] * -(-dims[2] // 32) * -(-dims[3] // 32) * TILE_BYTES[format]


class TensorFiles:
    def __init__(self, ttnn, formats, layouts):
        self.ttnn, self.formats, self.layouts = ttnn, formats, layouts
        self.headers = {}
        os.symlink(f"/proc/self/fd/{SHARED}", "shared.tensorbin")

    def empty(self, format, layout, dims):
        """What the library writes before an empty tensor."""
        zeros = self.ttnn.zeros(list(dims), dtype=self.formats[format],
                                layout=self.layouts[layout])
        self.ttnn.dump_tensor("empty.tensorbin", zeros)
        with open("empty.tensorbin", "rb") as file:
            header = file.read(HEADER_BYTES)
        size = os.stat("empty.tensorbin").st_size - payload_bytes(format, layout, dims)
        os.remove("empty.tensorbin")
        if not 8 < size <= HEADER_BYTES or header[:8] != struct.pack("<Q", size - 8):
            raise RuntimeError(f"a tensor file with {size} bytes before the data is unknown here")
        return header[:size]

    def made_from_sample(self, format, layout, dims):
        """The header for `dims`, made from the sample's: an empty tensor of a gigabyte would take
        the library seconds. None if the sample does not say its dims and size exactly once."""
        if (format, layout) not in self.headers:
            self.headers[format, layout] = self.empty(format, layout, SAMPLE)
        header = self.headers[format, layout]
        for words, of in (("<4I", lambda dims: dims),
                          ("<Q", lambda dims: (payload_bytes(format, layout, dims),))):
            if header.count(struct.pack(words, *of(SAMPLE))) != 1:
                return None
            header = header.replace(struct.pack(words, *of(SAMPLE)), struct.pack(words, *of(dims)))
        return header

    def header(self, format, layout, dims):
        key = (format, layout, dims)
        if key not in self.headers:
            if (format, layout, OTHER) not in self.headers:
                self.headers[format, layout, OTHER] = self.empty(format, layout, OTHER)
            rule_holds = (self.made_from_sample(format, layout, OTHER)
                          == self.headers[format, layout, OTHER])
            made = self.made_from_sample if rule_holds else self.empty
            self.headers[key] = made(format, layout, dims)
        return self.headers[key]

    def given(self, format, layout, dims):
        """Bytes of payload in the shared memory."""
        given = os.fstat(SHARED).st_size - HEADER_BYTES
        expected = payload_bytes(format, layout, dims)
        if given != expected:
            raise ValueError(f"{given} bytes for {list(dims)}, but the device stores {expected}")
        return given

    def load(self, format, layout, dims, device):
        self.given(format, layout, dims)
        header = self.header(format, layout, dims)
        stretched = struct.pack("<Q", HEADER_BYTES - 8) + header[8:].ljust(HEADER_BYTES - 8, b"\0")
        os.pwrite(SHARED, stretched, 0)
        return self.ttnn.load_tensor("shared.tensorbin", device=device)

    def unpack_and_convert(self, format, layout, dims, device):
        """The way for a library that stores tensors differently: f32 values that it packs."""
        numpy = importlib.import_module("numpy")
        data = os.pread(SHARED, self.given(format, layout, dims), HEADER_BYTES)
        data = numpy.frombuffer(data, numpy.uint8)
        if format == BFP8:
            data = data.reshape(-1, 1088)
            power = data[:, :64].astype(numpy.int32).repeat(16, 1) - 133
            byte = data[:, 64:].astype(numpy.int32)
            values = numpy.ldexp((1.0 - 2 * (byte >> 7)) * (byte & 127), power)
        elif TILE_BYTES[format] == 2048:
            values = (data.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            values = data.view(numpy.uint32)
        if not layout:
            rows, columns = -(-dims[2] // 32), -(-dims[3] // 32)
            values = values.reshape(-1, rows, columns, 2, 2, 16, 16).transpose(0, 1, 3, 5, 2, 4, 6)
            values = values.reshape(*dims[:2], rows * 32, columns * 32)[:, :, :dims[2], :dims[3]]
        kind = numpy.uint32 if format == U32 else numpy.float32
        values = numpy.ascontiguousarray(values.reshape(dims), kind)
        return self.ttnn.Tensor(values, self.formats[format], device, self.layouts[layout])

    def verify(self, download):
        """Gives the library one tile of small integers as bf16 and as bfp8 and reads them back.
        False: its file is not what it was, and tensors go the other way from here on."""
        def back(format, payload):
            os.ftruncate(SHARED, HEADER_BYTES + len(payload))
            os.pwrite(SHARED, payload, HEADER_BYTES)
            return bytes(download(self.load(format, 0, (1, 1, 32, 32), None)))

        values = [0.0] * 1024
        for n in range(1024):  # four faces of 16 x 16, each row by row
            row, column = n // 512 * 16 + n % 256 // 16, n // 256 % 2 * 16 + n % 16
            values[row * 32 + column] = float(n % 128)
        expected = struct.pack("<1024f", *values)
        halves = b"".join(struct.pack("<f", n % 128)[2:] for n in range(1024))
        blocks = bytes([133] * 64) + bytes(n % 128 for n in range(1024))  # times 2^(133 - 133)
        try:
            same = back(0, halves) == expected and back(1, blocks) == expected
        except (RuntimeError, ValueError, OSError, struct.error):
            same = False
        if not same:
            self.load = self.unpack_and_convert
        return same
