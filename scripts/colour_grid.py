"""Write the demo's model: a training-free ONNX that describes a crop by a coarse grid of its colours.

It stands in for a trained network until the demo trains one. float32 (N, 3, 256, 128) in, (N, 512 x 3) out:
the mean colour of each cell of a 32 x 16 grid, less the crop's mean colour, so that a camera's colour cast
matters less.
"""

import sys
from pathlib import Path

from onnx import parser

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
colour_grid (float[N, 3, 256, 128] pixels) => (float[N, 1536] embedding)
{
    cells = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    cast = GlobalAveragePool (pixels)
    contrast = Sub (cells, cast)
    embedding = Flatten (contrast)
}
"""

if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(parser.parse_model(GRAPH).SerializeToString(deterministic=True))
