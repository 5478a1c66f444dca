"""Sets a stream to where a checkpoint was in it, and checks that the documents read as they did; for resumes alone."""

from collections.abc import Mapping
from dataclasses import fields

from titan_pt.config.errors import ConfigError
from titan_pt.data.stream.row import Piece
from titan_pt.data.stream.state import Json, PieceState, ResumePoint, StreamState
from titan_pt.data.stream.stream import Stream


def state_from_json(values: Json) -> StreamState:
    """The state that `StreamState.to_json` wrote; other keys do not matter."""
    own: Json = {field.name: values[field.name] for field in fields(StreamState)}
    found: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    found["carry"] = tuple(tuple(PieceState(*piece) for piece in pieces) for pieces in own["carry"])
    return StreamState(**found)


def point_from_json(values: Json) -> ResumePoint:
    """The point that `ResumePoint.to_json` wrote."""
    before = values["before"]
    return ResumePoint(state_from_json(values), before and state_from_json(before))


def resume_all(streams: Mapping[int, Stream], saved: Json, *, makes_last_row_again: bool) -> dict[int, ResumePoint]:
    """Let all streams go on where they were saved; returns the points, by stream.

    Raises:
        ConfigError: the documents read differently now.
    """
    points = {s: point_from_json(saved[str(s)]) for s in streams}
    if not makes_last_row_again:
        points = {s: ResumePoint(point.state, None) for s, point in points.items()}
    for s, stream in streams.items():
        resume(stream, points[s])
    return points


def load_state(stream: Stream, state: StreamState) -> None:
    """Go on where the state was taken.

    Raises:
        ConfigError: the documents under way read differently now.
    """
    stream.tokens, stream.padding, stream.digest = list(state.tokens), state.padding, state.digest
    stream.skipped, stream.lost = list(state.skipped), list(state.lost)
    for order, draws, order_state in zip(stream.orders, state.draws, state.orders, strict=True):
        order.load_state_dict(draws, order_state)
    stream.carry = [[_reread(stream, piece) for piece in pieces] for pieces in state.carry]
    if stream.carry_hash() != state.carry_hash:
        names = ", ".join(piece.document for pieces in stream.carry for piece in pieces)
        raise ConfigError(
            f"data: {names} read differently than when the checkpoint was written; restore the files and the "
            'tokenizer, or start the data anew with checkpoint.exclude_from_loading = ["data"]'
        )


def resume(stream: Stream, point: ResumePoint) -> None:
    """Go on behind a batch: make its last row again, and check that it comes out as it did.

    Raises:
        ConfigError: it does not.
    """
    if point.before is None:
        load_state(stream, point.state)
        return
    load_state(stream, point.before)
    stream.next_row(partial=True)
    if stream.state() != point.state:
        raise ConfigError(
            f"data: stream {stream.index} reads other tokens (hash {stream.digest}) than when the checkpoint was "
            f"written ({point.state.digest}); restore the files and the tokenizer, or start the data anew with "
            'checkpoint.exclude_from_loading = ["data"]'
        )


def without_begun(stream: Stream) -> ResumePoint:
    """Drop the rest of the documents that the last rows end in; returns the state."""
    stream.carry = [[piece for piece in pieces if not piece.start] for pieces in stream.carry]
    return ResumePoint(stream.state(), None)


def _reread(stream: Stream, state: PieceState) -> Piece:
    piece = stream.read(state.source, state.place)
    if piece is None:
        name = stream.mixture.sources[state.source].name
        raise ConfigError(f"data: a document of {name!r} that the checkpoint was in is gone; restore the files")
    piece.start = state.start
    return piece
