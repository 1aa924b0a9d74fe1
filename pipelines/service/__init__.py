"""The classifier, label look-ups and segmentation over HTTP: `kappaseg serve`.

    config.py    settings and limits              security.py  who may ask, from where
    app.py       the application, put together    house.py     what is served, from start to drain
    routes/      the HTTP surface                 records.py   what goes in and out of it
    uploads.py   images of a request              segmenting.py  from image to label map
    caches.py    label caches (no torch)          classify.py  the live classifier     segment.py   the network
    batching.py  several images, one forward      pictures.py  images from strangers   problems.py errors as RFC 9457
    run.py       the process: address, signals    watch.py     Prometheus              page/       the page at /

With caches alone the service starts without torch.
"""
