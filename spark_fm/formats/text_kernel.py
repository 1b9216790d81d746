"""The loop over the bytes of libsvm and libfm lines, compiled.

It returns a number as a whole mantissa and a power of ten, or says where a number is that these
do not give exactly: NumPy and Arrow make doubles of both, rounded correctly, which the flags of
compiled code do not allow here.
"""

from __future__ import annotations

from spark_fm.learner.jit import njit

# A double holds mantissas and powers of ten up to these exactly, and their product or quotient
# is rounded once: Clinger, How to Read Floating Point Numbers Accurately (1990).
MAX_MANTISSA, MAX_POWER = 2**53, 22
BY_TEXT = 127  # a power: the number is to be read from its text

_DIGITS = 18  # that an int64 holds
_SPACE, _TAB, _RETURN, _HASH, _COLON, _DOT = 32, 9, 13, 35, 58, 46
_PLUS, _MINUS, _ZERO, _NINE, _E, _SMALL_E = 43, 45, 48, 57, 69, 101
_QID = tuple(b"qid:")
_NOT_ASCII = 128


def _read_number(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (mantissa, power, where it ends or -1, whether it is digits alone)."""
    negative, plain = False, True
    if p < end and (buf[p] == _MINUS or buf[p] == _PLUS):
        negative, plain = buf[p] == _MINUS, False
        p += 1
    mantissa, power, digits, seen = 0, 0, 0, 0
    fraction = False
    while p < end:
        byte = buf[p]
        if _ZERO <= byte <= _NINE:
            seen += 1
            if digits < _DIGITS:
                mantissa = mantissa * 10 + (byte - _ZERO)
                power -= fraction
            if mantissa > 0:
                digits += 1
        elif byte == _DOT and not fraction:
            fraction, plain = True, False
        else:
            break
        p += 1
    if seen == 0:
        return 0, 0, -1, False
    if p < end and (buf[p] == _E or buf[p] == _SMALL_E):
        plain = False
        p += 1
        down = p < end and buf[p] == _MINUS
        if p < end and (buf[p] == _MINUS or buf[p] == _PLUS):
            p += 1
        start, exponent = p, 0
        while p < end and _ZERO <= buf[p] <= _NINE:
            exponent = min(exponent * 10 + (buf[p] - _ZERO), 10_000)
            p += 1
        if p == start:
            return 0, 0, -1, False
        power += -exponent if down else exponent
    if mantissa == 0:
        power = BY_TEXT if negative else 0  # whole numbers know no -0
    is_exact = digits <= _DIGITS and mantissa <= MAX_MANTISSA and abs(power) <= MAX_POWER
    return -mantissa if negative else mantissa, power if is_exact else BY_TEXT, p, plain


_number = njit(_read_number, variant="text")


def _is_end(buf, p, end):  # type: ignore[no-untyped-def]
    """Return whether no token goes on at ``p``."""
    return p == end or buf[p] == _SPACE or _TAB <= buf[p] <= _RETURN or buf[p] == _HASH


_ends = njit(_is_end, variant="text")


def _find_end(buf, p, end):  # type: ignore[no-untyped-def]
    """Return where the token at ``p`` ends, -1 where it has a colon."""
    while not _ends(buf, p, end):
        if buf[p] == _COLON:
            return -1
        p += 1
    return p


_text_end = njit(_find_end, variant="text")


def _parse_lines(  # type: ignore[no-untyped-def]
    buf, starts, first, last, needs_label,
    positions, has_label, row_ends, label_mantissas, label_powers,
    indices, mantissas, powers, texts,
):  # fmt: skip
    """Fill in rows, entries and places of numbers; return how many, or rows -1.

    Rows are -1 where a line is unusual: it is broken, or has what only Python's text functions
    tell from white space. ``texts`` takes (entry, or -1 - row of a label; start; end).
    """
    rows, entries, n_texts = 0, 0, 0
    for line in range(len(starts) - 1):
        p, end = starts[line], starts[line + 1]
        is_first = True
        while True:
            while p < end and (buf[p] == _SPACE or _TAB <= buf[p] <= _RETURN):
                p += 1
            if p == end or buf[p] == _HASH:
                break
            mantissa, power, q, plain = _number(buf, p, end)
            has_index = q > 0 and plain and q < end and buf[q] == _COLON
            if is_first:
                is_first = False
                positions[rows], has_label[rows] = line, not has_index
                label_mantissas[rows], label_powers[rows] = 0, 0
                if not has_index:
                    if q < 0 or not _ends(buf, q, end):
                        q, power = _text_end(buf, p, end), BY_TEXT
                        if q < 0:
                            return -1, 0, 0
                    label_mantissas[rows], label_powers[rows] = mantissa, power
                    if power == BY_TEXT:
                        texts[n_texts, 0], texts[n_texts, 1], texts[n_texts, 2] = -1 - rows, p, q
                        n_texts += 1
                    p = q
                    continue
                if needs_label:
                    return -1, 0, 0
            if not has_index:
                if end - p > 3 and (
                    buf[p] == _QID[0] and buf[p + 1] == _QID[1]
                    and buf[p + 2] == _QID[2] and buf[p + 3] == _QID[3]
                ):  # fmt: skip
                    while not _ends(buf, p, end):
                        if buf[p] >= _NOT_ASCII or buf[p] < _SPACE:  # it may be white space
                            return -1, 0, 0
                        p += 1
                    continue
                return -1, 0, 0
            index, index_power = mantissa, power
            p = q + 1
            mantissa, power, q, plain = _number(buf, p, end)
            if q > 0 and plain and q < end and buf[q] == _COLON:  # libffm's field was in front
                index, index_power = mantissa, power
                p = q + 1
                mantissa, power, q, _ = _number(buf, p, end)
            if index_power == BY_TEXT or not first <= index <= last + first:
                return -1, 0, 0
            if q < 0 or not _ends(buf, q, end):
                q, power = _text_end(buf, p, end), BY_TEXT
                if q < 0:
                    return -1, 0, 0
            indices[entries] = index - first
            mantissas[entries], powers[entries] = mantissa, power
            if power == BY_TEXT:
                texts[n_texts, 0], texts[n_texts, 1], texts[n_texts, 2] = entries, p, q
                n_texts += 1
            entries += 1
            p = q
        if not is_first:
            row_ends[rows] = entries
            rows += 1
    return rows, entries, n_texts


parse_lines = njit(_parse_lines, tag="parse-lines")
