//go:build !race

package httpx_test

const raceFactor = 1
