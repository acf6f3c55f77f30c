"""What carries a federation's messages: this process, Ray, or Flower's own processes."""
