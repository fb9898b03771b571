"""A data set with a bug that shows in loader processes, in a file that one can load without torch."""

import sys

from mvlm.data.samples.pairs import PairDataset


class Broken(PairDataset):
    def describe(self, *arguments):
        if "torch" not in sys.modules:
            raise KeyError("a bug")
        return super().describe(*arguments)
