#!/usr/bin/env python3
"""Writes frames of a LeRobot dataset for `tendon validate CHECKPOINT --loss FOLDER`.

    python examples/dataset_to_recording.py REPO_ID FOLDER --horizon 50 --frames 50

Each frame becomes a request as a robot would send it, with the actions of the next HORIZON frames
beside it under "actions". Needs lerobot (which reads the dataset), numpy and msgpack. Another
format: call write() with dictionaries of your own.
"""
import argparse
import pathlib
import struct
import zlib

import msgpack
import numpy as np


def pack_array(array):
    """As openpi's client sends NumPy arrays."""
    array = np.ascontiguousarray(array)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str,
            b"shape": array.shape}


def checked(size, rest):
    """The form of every header: a size, a checksum of all but itself, the rest."""
    first = struct.pack("<I", size)
    return first + struct.pack("<I", zlib.crc32(first + rest)) + rest


def write(file, requests):
    """`requests`: dictionaries with pictures, state and prompt in a robot's keys, and "actions"
    [rows, dim] in the robot's units."""
    with open(file, "wb") as out:
        out.write(b"tendon-record 1\n" + checked(0, struct.pack("<q", 0)))
        for number, request in enumerate(requests):
            message = msgpack.packb(request, default=pack_array)
            place = struct.pack("<IQQQ", 1, number, number, 0)  # a request of its own connection
            out.write(checked(len(message), place + message))


def frames(repo_id, horizon, count):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    fps = LeRobotDatasetMetadata(repo_id).fps
    dataset = LeRobotDataset(repo_id,
                             delta_timestamps={"action": [i / fps for i in range(horizon)]})
    for index in np.linspace(0, len(dataset) - 1, count).astype(int):
        frame = dataset[int(index)]
        rows = ~frame["action_is_pad"].numpy()  # beyond the end of the episode
        request = {"prompt": frame["task"], "actions": frame["action"].numpy()[rows],
                   "observation.state": frame["observation.state"].numpy()}
        for key in dataset.meta.camera_keys:
            planes = frame[key].numpy()  # [3, height, width] in [0, 1]
            request[key] = (255 * planes).round().astype(np.uint8)
        yield request


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("repo_id")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--horizon", type=int, required=True, help="the policy's")
    parser.add_argument("--frames", type=int, default=50)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write(options.folder / "dataset.tendon-record",
          frames(options.repo_id, options.horizon, options.frames))


if __name__ == "__main__":
    main()
