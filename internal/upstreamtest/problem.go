package upstreamtest

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// problem is OpenAI's error object with the status it comes with.
type problem struct {
	status  int
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

const invalidRequest = "invalid_request_error"

func (p *problem) envelope() []byte {
	body, err := json.MarshalIndent(map[string]*problem{"error": p}, "", "  ")
	if err != nil { // three strings always encode
		panic(fmt.Errorf("upstreamtest: error: %w", err))
	}
	return append(body, '\n')
}

func problemJSON(err error) *problem {
	return &problem{
		status: http.StatusBadRequest, Type: invalidRequest,
		Message: fmt.Sprintf("We could not parse the JSON body of your request: %v.", err),
	}
}

func problemTooLong() *problem {
	return &problem{
		status: http.StatusRequestEntityTooLarge, Type: invalidRequest,
		Message: fmt.Sprintf("Maximum content size limit (%d) exceeded.", maxBody),
	}
}

func problemSimulate(err error) *problem {
	return &problem{
		status: http.StatusBadRequest, Type: invalidRequest, Param: new("simulate"), Code: new("invalid_value"),
		Message: err.Error(),
	}
}

func problemMissing(param string) *problem {
	return &problem{
		status: http.StatusBadRequest, Type: invalidRequest, Param: &param, Code: new("missing_required_parameter"),
		Message: fmt.Sprintf("Missing required parameter: '%s'.", param),
	}
}

func problemInvalid(param, want string) *problem {
	return &problem{
		status: http.StatusBadRequest, Type: invalidRequest, Param: &param, Code: new("invalid_value"),
		Message: fmt.Sprintf("Invalid '%s': expected %s.", param, want),
	}
}

func problemKey(given bool) *problem {
	p := &problem{status: http.StatusUnauthorized, Type: invalidRequest}
	if !given {
		p.Message = "You didn't provide an API key. You need to provide your API key in an Authorization header " +
			"using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
		return p
	}
	p.Message, p.Code = "Incorrect API key provided.", new("invalid_api_key")
	return p
}

func problemModel(model string) *problem {
	return &problem{
		status: http.StatusNotFound, Type: invalidRequest, Code: new("model_not_found"),
		Message: fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", model),
	}
}

func problemPath(method, path string) *problem {
	return &problem{
		status: http.StatusNotFound, Type: invalidRequest, Code: new("unknown_url"),
		Message: fmt.Sprintf("Unknown request URL: %s %s. Please check the URL for typos.", method, path),
	}
}

func problemMethod(method string) *problem {
	return &problem{
		status: http.StatusMethodNotAllowed, Type: invalidRequest, Code: new("method_not_supported"),
		Message: fmt.Sprintf("Not allowed to %s on this path.", method),
	}
}

func problemQuota() *problem {
	return &problem{
		status: http.StatusTooManyRequests, Type: "insufficient_quota", Code: new("insufficient_quota"),
		Message: "You exceeded your current quota, please check your plan and billing details.",
	}
}

// problemStatus is the error that usually comes with code.
func problemStatus(code int) *problem {
	p := &problem{status: code, Type: invalidRequest, Message: fmt.Sprintf("Simulated %d.", code)}
	switch {
	case code == http.StatusUnauthorized:
		p.Code = new("invalid_api_key")
	case code == http.StatusNotFound:
		p.Code = new("model_not_found")
	case code == http.StatusTooManyRequests:
		p.Type, p.Code = "requests", new("rate_limit_exceeded")
		p.Message = "Simulated 429: rate limit reached on requests per min (RPM): limit 30000, used 30000, requested 1."
	case code == http.StatusServiceUnavailable:
		p.Type = "service_unavailable_error"
		p.Message = "Simulated 503: the engine is currently overloaded, please try again later."
	case code >= http.StatusInternalServerError:
		p.Type = "server_error"
		p.Message = fmt.Sprintf("Simulated %d: the server had an error while processing your request. Sorry about that!", code)
	}
	return p
}
