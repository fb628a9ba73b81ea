"""Images and their labels: readers of data sets, decoding, the byte cache, and views made on the batch.

`open_dataset(DataSettings(...), cache_folder)` checks a data set, decodes it once and returns a Dataset.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "table": "UNLABELLED LabelTable",
        "dataset": "Dataset PUBLISHED choose count_images open_dataset read_source signature",
        "settings": "DataSettings ImportSettings",
        "check": "check_data",
        "importing": "import_labels",
        "boxes": "boxes_of",
        "images.decode": "BadImage decode",
        "images.pixels": "decode_batches",
        "readers.coco2014": "COCO_CLASSES",
        "readers.common": "NOT_COMPARABLE find_photos read_arrays",
        "augment.views": "VIEWS VIEWS_VERSION permutation test_view train_view",
        "scenes.scenes": "Scenes",
    },
)
