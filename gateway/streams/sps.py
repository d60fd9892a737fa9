"""H.264 parameter sets (ITU-T H.264 section 7.3.2 and annex E): what a gateway wants to know of them. Pure."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass

from gateway.errors import ProtocolError

__all__ = ["Bits", "Sps", "parse_sprop", "parse_sps"]

_SPS = 7
_PROFILES = {
    66: "Baseline",
    77: "Main",
    88: "Extended",
    100: "High",
    110: "High 10",
    122: "High 4:2:2",
    244: "High 4:4:4",
}
_CHROMA_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


class Bits:
    """Exp-Golomb reader over an RBSP. Reading past the end raises ProtocolError."""

    __slots__ = ("_bits", "_left", "_size")

    def __init__(self, rbsp: bytes) -> None:
        self._bits = int.from_bytes(rbsp, "big")
        self._size = self._left = len(rbsp) * 8

    def u(self, count: int) -> int:
        if count > self._left:
            raise ProtocolError("truncated_rbsp", (self._size - self._left) // 8)
        self._left -= count
        return (self._bits >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise ProtocolError("bad_exp_golomb", (self._size - self._left) // 8)
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sps:
    """What we need of a sequence parameter set (ITU-T H.264 section 7.3.2.1.1 and annex E).

    width, height: after cropping. fps: from the VUI, None if it says nothing. may_reorder: pictures may be output in
    another order than they come in, if there are B slices (pic_order_cnt_type 2 and max_num_reorder_frames 0 forbid it).
    """

    profile_idc: int
    constraints: int
    level_idc: int
    width: int
    height: int
    fps: float | None
    may_reorder: bool

    @property
    def profile(self) -> str:
        """The profile's name with its level, for example `High@4.0`."""
        name = _PROFILES.get(self.profile_idc, str(self.profile_idc))
        if self.profile_idc == 66 and self.constraints & 0x40:
            name = "Constrained Baseline"
        return f"{name}@{self.level_idc // 10}.{self.level_idc % 10}"

    @property
    def profile_level_id(self) -> str:
        """As in SDP (RFC 6184 section 8.1): six lower-case hex digits."""
        return f"{self.profile_idc:02x}{self.constraints:02x}{self.level_idc:02x}"


def parse_sps(nal_unit: bytes) -> Sps:
    """Raise ProtocolError if it is no SPS or is damaged."""
    if len(nal_unit) < 4 or nal_unit[0] & 31 != _SPS:
        raise ProtocolError("not_an_sps", 0)
    if len(nal_unit) > 4096:
        raise ProtocolError("oversized_sps", 4096)
    bits = Bits(nal_unit[1:].replace(b"\0\0\3", b"\0\0"))
    profile_idc, constraints, level_idc = bits.u(8), bits.u(8), bits.u(8)
    bits.ue()  # seq_parameter_set_id
    chroma_format_idc = 1
    separate_planes = 0
    if profile_idc in _CHROMA_PROFILES:
        chroma_format_idc = bits.ue()
        if chroma_format_idc == 3:
            separate_planes = bits.u(1)
        bits.ue()
        bits.ue()
        bits.u(1)
        if bits.u(1):  # seq_scaling_matrix_present_flag
            for index in range(8 if chroma_format_idc != 3 else 12):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.ue()  # log2_max_frame_num_minus4
    pic_order_cnt_type = bits.ue()
    if pic_order_cnt_type == 0:
        bits.ue()
    elif pic_order_cnt_type == 1:
        bits.u(1)
        bits.se()
        bits.se()
        cycle = bits.ue()
        if cycle > 255:
            raise ProtocolError("bad_sps_cycle")
        for _ in range(cycle):
            bits.se()
    bits.ue()  # max_num_ref_frames
    bits.u(1)
    width_in_mbs, height_in_units = bits.ue() + 1, bits.ue() + 1
    frame_mbs_only = bits.u(1)
    if not frame_mbs_only:
        bits.u(1)
    bits.u(1)
    left = right = top = bottom = 0
    if bits.u(1):
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
    unit_x = 2 if chroma_format_idc in (1, 2) and not separate_planes else 1
    unit_y = (2 if chroma_format_idc == 1 and not separate_planes else 1) * (2 - frame_mbs_only)
    width = width_in_mbs * 16 - unit_x * (left + right)
    height = height_in_units * 16 * (2 - frame_mbs_only) - unit_y * (top + bottom)
    if not (0 < width <= 16384 and 0 < height <= 16384):
        raise ProtocolError("bad_picture_size")
    fps, reorder = _vui(bits) if bits.u(1) else (None, None)
    return Sps(
        profile_idc=profile_idc,
        constraints=constraints,
        level_idc=level_idc,
        width=width,
        height=height,
        fps=fps,
        may_reorder=pic_order_cnt_type != 2 and reorder != 0 and profile_idc != 66,
    )


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _vui(bits: Bits) -> tuple[float | None, int | None]:
    """(fps, max_num_reorder_frames). A VUI cut short is common in cameras and costs only what it hides."""
    fps: float | None = None
    try:
        if bits.u(1) and bits.u(8) == 255:
            bits.u(32)
        if bits.u(1):
            bits.u(1)
        if bits.u(1):
            bits.u(4)
            if bits.u(1):
                bits.u(24)
        if bits.u(1):
            bits.ue()
            bits.ue()
        if bits.u(1):
            units, scale = bits.u(32), bits.u(32)
            bits.u(1)
            if units and 0 < scale / (2 * units) <= 240:
                fps = scale / (2 * units)
        nal_hrd = bits.u(1)
        if nal_hrd:
            _skip_hrd(bits)
        vcl_hrd = bits.u(1)
        if vcl_hrd:
            _skip_hrd(bits)
        if nal_hrd or vcl_hrd:
            bits.u(1)
        bits.u(1)
        if bits.u(1):
            bits.u(1)
            for _ in range(4):
                bits.ue()
            return fps, bits.ue()
    except ProtocolError:
        pass
    return fps, None


def _skip_hrd(bits: Bits) -> None:
    count = bits.ue() + 1
    if count > 32:
        raise ProtocolError("bad_hrd")
    bits.u(8)
    for _ in range(count):
        bits.ue()
        bits.ue()
        bits.u(1)
    bits.u(20)


def parse_sprop(value: str) -> list[bytes]:
    """NAL units of an `sprop-parameter-sets` value (RFC 6184 section 8.1); what is not base64 is left out."""
    nal_units = []
    for part in value.split(","):
        try:
            nal_unit = b64decode(part.strip() + "=" * (-len(part.strip()) % 4), validate=True)
        except ValueError:
            continue
        # Some cameras leave start codes in front (Annex B) or a trailing zero byte behind.
        nal_unit = (
            nal_unit.lstrip(b"\0").removeprefix(b"\1")
            if nal_unit[:3] == b"\0\0\0" or nal_unit[:3] == b"\0\0\1"
            else nal_unit
        )
        if len(nal_unit) > 1:
            nal_units.append(nal_unit)
    return nal_units
