"""A data set with a bug, in a file that a loader process can load without torch."""

from mvlm.data.pairs import PairDataset


class Broken(PairDataset):
    def prepare(self, *arguments):
        raise KeyError("a bug")
