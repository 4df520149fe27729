"""The one gRPC call of a grpc probe (grpc.health.v1.Health/Check), as bytes: enough of HTTP/2 (RFC 9113) for it, and no more.

Headers go out as literals; those that come back are not decoded, since the answer is in the message: a response without one is a
failed call, whatever its grpc-status says.
"""

from __future__ import annotations

import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
STREAM = 1

#: HealthCheckResponse.ServingStatus.
STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
NO_ANSWER = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health), or does not know the service"


class Health:
    """``request`` is to be sent first; feed() takes what comes."""

    def __init__(self, authority: str, service: str) -> None:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "kube-probe/1.36"),
        ]
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)
        message = (b"\x0a" + _text_varint(service)) if service else b""
        body = b"\x00" + struct.pack(">I", len(message)) + message
        self.request = (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(SETTINGS, 0, 0, b"")
            + _frame(HEADERS, END_HEADERS, STREAM, block)
            + _frame(DATA, END_STREAM, STREAM, body)
        )
        self.problem = NO_ANSWER  # "" when the service is serving
        self._input = b""
        self._message = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes of the answer. Returns what to send back now, None when the call is over."""
        self._input += data
        reply = b""
        while len(self._input) >= 9:
            length = int.from_bytes(self._input[:3], "big")
            kind, flags = self._input[3], self._input[4]
            stream = int.from_bytes(self._input[5:9], "big") & 0x7FFFFFFF
            if len(self._input) < 9 + length:
                break
            payload = self._input[9 : 9 + length]
            self._input = self._input[9 + length :]
            if kind == SETTINGS and not flags & ACK:
                reply += _frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                reply += _frame(PING, ACK, 0, payload)
            elif kind == DATA and stream == STREAM:
                self._message += payload[1 : length - payload[0]] if flags & PADDED else payload
            if kind == GOAWAY or (stream == STREAM and (kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM))):
                self._judge()
                return None
        return reply

    def _judge(self) -> None:
        if len(self._message) < 5 or self._message[0] != 0:
            return
        message = self._message[5 : 5 + int.from_bytes(self._message[1:5], "big")]
        status = message[1] if len(message) >= 2 and message[0] == 0x08 else 0  # field 1, absent when it is 0
        self.problem = "" if status == 1 else f'service unhealthy (responded with "{STATUSES.get(status, status)}")'


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(text: str) -> bytes:
    """A string literal of HPACK without Huffman coding (RFC 7541, 5.2)."""
    raw = text.encode()
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    rest, size = len(raw) - 127, b"\x7f"
    while rest >= 128:
        size += bytes((rest % 128 + 128,))
        rest //= 128
    return size + bytes((rest,)) + raw


def _text_varint(text: str) -> bytes:
    """A string of protobuf: length as varint, then UTF-8."""
    raw = text.encode()
    size, rest = b"", len(raw)
    while rest >= 128:
        size += bytes((rest % 128 + 128,))
        rest //= 128
    return size + bytes((rest,)) + raw
