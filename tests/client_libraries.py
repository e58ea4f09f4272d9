"""What robots use instead of openpi's client: each function asks twice on one connection.

(url, request) -> [greeting, reply, reply], raw messages. For clients_test.py, inside the
environment that has the libraries.
"""
import contextlib
import re


def twice(receive, send, request):
    messages = [receive()]
    for _ in range(2):
        send(request)
        messages.append(receive())
    return messages


def ask_websockets(url, request, compression=None):
    from websockets.sync.client import connect
    with connect(url, compression=compression, max_size=None) as ws:
        return twice(ws.recv, ws.send, request)


def ask_websockets_compressed(url, request):
    return ask_websockets(url, request, "deflate")


def connect_as_a_page(url, **origin):
    """Unlike all others this library sends an Origin, the server's address, unless told not to."""
    import websocket
    websocket.create_connection(url, timeout=30, **origin).close()


def ask_websocket_client(url, request):
    import websocket
    with contextlib.closing(
            websocket.create_connection(url, timeout=30, suppress_origin=True)) as ws:
        return twice(ws.recv, ws.send_binary, request)


def ask_aiohttp(url, request):
    import asyncio

    import aiohttp

    async def ask():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, max_msg_size=0, compress=15) as ws:
                messages = [await ws.receive_bytes()]
                for _ in range(2):
                    await ws.send_bytes(request)
                    messages.append(await ws.receive_bytes())
                return messages

    return asyncio.run(ask())


def ask_wsproto(url, request, fragment_bytes=None):
    """The library that only knows the protocol: socket and loop are here."""
    import socket

    from wsproto import ConnectionType, WSConnection, events
    host, port = re.match(r"ws://(.*):(\d+)", url).groups()
    ws = WSConnection(ConnectionType.CLIENT)

    def receive():
        message = b""
        while True:
            for event in ws.events():
                if isinstance(event, (events.RejectConnection, events.CloseConnection)):
                    raise ConnectionError(f"wsproto got {event}")
                if isinstance(event, events.BytesMessage):
                    message += event.data
                    if event.message_finished:
                        return bytes(message)
            ws.receive_data(link.recv(65536) or None)

    def send(request):
        step = fragment_bytes or len(request)
        for at in range(0, len(request), step):
            last = at + step >= len(request)
            link.sendall(ws.send(events.BytesMessage(request[at:at + step], message_finished=last)))

    with socket.create_connection((host, int(port)), timeout=30) as link:
        link.sendall(ws.send(events.Request(host=host, target="/")))
        return twice(receive, send, request)


def ask_wsproto_in_fragments(url, request):
    return ask_wsproto(url, request, fragment_bytes=10_000)


OTHERS = (ask_websockets, ask_websockets_compressed, ask_websocket_client, ask_aiohttp, ask_wsproto,
          ask_wsproto_in_fragments)
