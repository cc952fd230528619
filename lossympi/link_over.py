"""What a server's end that lies over another has of that one as it is."""

from __future__ import annotations

from collections.abc import Sequence

from lossympi.link import ServerLink


class ServerOver:
    """The verbs that name rows and tickets, and no gradient or parameters; see ``ServerLink``."""

    def __init__(self, link: ServerLink) -> None:
        """Takes over a link."""
        self._link = link
        self.num_workers = link.num_workers

    def expect(self, tickets: Sequence[int]) -> None:
        """Says which ticket each row's next gradient has, before the first `take`."""
        self._link.expect(tickets)

    def dropped(self) -> list[dict[str, int]]:
        """Returns how many messages of each row were dropped since the last call, by reason."""
        return self._link.dropped()

    def waiting_for(self) -> list[int]:
        """Returns the rows that the open round waits for; from any thread."""
        return self._link.waiting_for()

    def forget(self, row: int) -> None:
        """Waits for a worker no more, until it is heard again; from any thread."""
        self._link.forget(row)

    def close(self) -> None:
        """Ends the link."""
        self._link.close()


__all__ = ["ServerOver"]
