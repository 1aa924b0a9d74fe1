"""The classifier, label look-ups and segmentation over HTTP: `kappaseg serve`.

    config.py      settings and limits              security.py  who may ask, from where
    app.py         the application, put together    house.py     what is served, from start to drain
    run.py         the process: address, signals    answers.py   what every answer has
    routes/        the HTTP surface                 records.py   what goes in and out of it
    page/          the page at /                    problems.py  errors as RFC 9457
    uploads.py     images of a request              pictures.py  images from strangers
    batching.py    several images, one forward      classify.py  the live classifier
    segmenting.py  from image to label map          segment.py   the network
    caches.py      label caches (no torch)          watch.py     Prometheus

With caches alone the service starts without torch.
"""
