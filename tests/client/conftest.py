"""The scripted server, running."""

import threading

import pytest

from tests.client.script import Script


@pytest.fixture
def script():
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
