//go:build race

package e2e_test

// raceDetector says that the test runs under the race detector, and so must the binaries.
const raceDetector = true
