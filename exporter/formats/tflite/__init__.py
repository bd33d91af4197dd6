"""`.tflite`: from the captured program to a float file, and from that to a quantised one."""
