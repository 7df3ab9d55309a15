"""Serve a model and ask it many things at once; the engine answers them together.

python examples/serve_and_call.py product-copy      # the server alone, from the command line: danlu serve product-copy
"""

import queue
import sys
import threading

import danlu
from danlu.client import Client, RemoteModel
from danlu.core.records import GenerateOptions, Message
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import Server, reserve_port


def main(name: str = "product-copy") -> None:
    engine = danlu.engine({"my-model": name})
    urls: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = Server(engine, HttpConfig(), urls.put)
    thread = threading.Thread(target=server.run_on, args=(reserve_port("127.0.0.1", 0),))
    thread.start()
    titles = [f"{colour} dress" for colour in ("Navy", "Black", "White", "Green")]
    chats: list[list[Message]] = [[{"role": "user", "content": title}] for title in titles]
    try:
        with RemoteModel(Client(urls.get())) as model:
            for title, answer in zip(titles, model.generate(chats, GenerateOptions(max_tokens=24)), strict=True):
                print(f"{title}: {answer.text!r}")
    finally:
        server.ask_to_stop()
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
