"""TCP on the same poller: `Acceptor` takes connections, `connect` makes one, a `Stream` is one, framers cut it up.

TCP carries bytes and no borders between messages: what was written at once may arrive in pieces or together with
the next. So each stream has a framer, an object without I/O that takes bytes as they come and gives messages.

What a stream does about its peer:

* It reads at most 64 KiB in a turn, so a flood on one connection leaves time for the others.
* What the peer does not take at once is kept, and sent when the socket is writable again. When more than
  `high_water` bytes are kept, the stream stops listening to that peer until half of it is gone: whoever does not
  take answers is not asked for more questions, and echoing or answering needs no code for it. (Two peers that both
  pour out unasked more than that and only then listen would wait for each other; `stall` ends it.)
* When more than `limit` bytes are kept, which can only happen when others cause the writing, as in a chat, the peer
  is too slow and its connection is closed with `PeerTimeout`. So it is when it takes nothing for `stall` seconds.
* With `idle`, a connection on which no message was completed and nothing sent for so many seconds is closed with
  `PeerTimeout`. A peer that sends a byte now and then does not complete messages.
* Each direction ends on its own. When the peer has finished, `handle_end` is called and writing goes on;
  `finish` ends our own direction after all that was written.
* Whatever goes wrong with a connection ends that connection alone, with `handle_close(error)`.

What a peer can make us keep is `limit` and one message on the way out, and one message of the framer's limit and
64 KiB on the way in; times `Acceptor(max_connections=...)`.
"""

from __future__ import annotations

from .connections import Acceptor, connect
from .framers import Framer, Lines, Prefixed, Raw
from .stream import Stream

__all__ = ["Acceptor", "Framer", "Lines", "Prefixed", "Raw", "Stream", "connect"]
