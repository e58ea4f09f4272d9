"""As much of numpy as worker.py asks for besides the stand-in for ttnn."""


class Array(list):
    def reshape(self, shape):
        self.shape = shape
        return self

    def astype(self, kind):
        return self


def frombuffer(data, kind):
    return Array(memoryview(data).cast("f"))
