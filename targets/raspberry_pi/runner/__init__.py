"""Run this model on a Raspberry Pi (or any 64-bit Linux): predictions, parity, latency, and what went wrong before it.

    python run.py                          replay the golden vectors with every model that has a runtime here
    python run.py photo.jpg                prepare a picture as in calibration, print the top labels
    python run.py x.npy                    the same for a tensor that is already prepared
    python run.py --check-tensor x.npy     compare a tensor that your own code prepared from a golden picture

As a module (beside this file: `from run import Model`; from the wheel: `from NAME_edge import Model`):

    model = Model()
    model.predict("photo.jpg")             [Prediction(label, score), …], best first
    model.run(array)                       {output name: array}

Needs numpy and one of onnxruntime, ai-edge-litert or tflite-runtime; Pillow only for pictures.
The answer goes to standard output (--json for programs), complaints to standard error in one line.
Exit codes: 0 ok, 2 usage, 10 input, 11 unsafe, 12 no runtime or not supported, 14 out of tolerance, 19 damaged model.
"""
