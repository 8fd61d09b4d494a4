package config

import (
	"errors"
	"fmt"

	"github.com/ferry-queue/ferry/internal/seal"
)

// Encryption is how prompts, answers and errors are kept from whoever reads Redis or its files.
type Encryption struct {
	Keys []EncryptionKey `yaml:"keys"` // the first seals, all of them open; default none: nothing is sealed
}

// EncryptionKey says where a key is: in a variable or in a file.
type EncryptionKey struct {
	ID      string `yaml:"id"`       // stands in Redis beside what the key has sealed
	KeyEnv  string `yaml:"key_env"`  // name of the variable that holds 32 bytes as base64 or hexadecimal
	KeyFile string `yaml:"key_file"` // name of the file that holds them
}

// ring reads the keys; it is nil if there are none.
func (e Encryption) ring(getenv func(string) string) (*seal.Ring, error) {
	var errs []error
	keys := make([]seal.Key, len(e.Keys))
	for i, k := range e.Keys {
		var err error
		if keys[i], err = k.read(getenv); err != nil {
			errs = append(errs, fmt.Errorf("encryption.keys[%d].%w", i, err))
		}
	}
	if len(errs) > 0 || len(keys) == 0 {
		return nil, errors.Join(errs...)
	}
	ring, err := seal.New(keys...)
	if err != nil {
		return nil, fmt.Errorf("encryption.keys: %w", err)
	}
	return ring, nil
}

func (k EncryptionKey) read(getenv func(string) string) (seal.Key, error) {
	setting, secret, err := k.secret(getenv)
	if err != nil {
		return seal.Key{}, err
	}
	key, err := seal.ParseKey(k.ID, secret)
	if errors.Is(err, seal.ErrID) {
		setting = "id"
	}
	if err != nil {
		return seal.Key{}, fmt.Errorf("%s: %w", setting, err)
	}
	return key, nil
}

// secret returns the text of the key and the setting it comes from. A name is repeated in an error only if it is not
// itself a key that was put in the wrong place.
func (k EncryptionKey) secret(getenv func(string) string) (setting, secret string, err error) {
	switch {
	case (k.KeyEnv == "") == (k.KeyFile == ""):
		return "", "", errors.New("key_env: give it or key_file, one of the two")
	case isKey(k.KeyEnv):
		return "", "", errors.New("key_env: this is a key; give the name of the variable that holds it")
	case isKey(k.KeyFile):
		return "", "", errors.New("key_file: this is a key; give the name of the file that holds it")
	case k.KeyEnv != "":
		if secret = getenv(k.KeyEnv); secret == "" {
			return "", "", fmt.Errorf("key_env: the variable %s is not set", k.KeyEnv)
		}
		return "key_env", secret, nil
	}
	text, err := readSecretFile(k.KeyFile)
	if err != nil {
		return "", "", fmt.Errorf("key_file: %w", err)
	}
	return "key_file", text.Reveal(), nil
}

func isKey(text string) bool {
	_, err := seal.ParseKey("id", text)
	return err == nil
}
