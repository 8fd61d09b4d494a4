//go:build race

package httpx_test

// raceFactor stretches limits on real time under the race detector, which slows goroutines down about tenfold.
const raceFactor = 10
