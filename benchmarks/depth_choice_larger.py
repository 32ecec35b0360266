"""The yardstick of ``benchmarks.depth_choice`` with 10,000 images: does what was found on 4,000 hold for more?

One pair, because each of its oracles takes most of an hour of one core.
"""

from dataclasses import replace

from benchmarks.depth_choice import CPU, GROWTH, GROWTH_DATA, main

LARGER = replace(CPU, grid=((GROWTH_DATA, GROWTH[0], ()),), seeds=(0, 1), train_limit=10_000, growth=())

if __name__ == "__main__":
    main("depth_choice_larger", LARGER)
