// Package script is the script of calls of interop/README.md, for every Go library that can make them.
package script

import (
	"context"
	"flag"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "quill.example/interop/gen/inference/v1"
)

// Flags are what every client program is given.
type Flags struct {
	Protocol, URL, Address, Key, CutURL, CutAddress string
	HTTP2                                           bool
}

// ParseFlags reads the command line.
func ParseFlags() Flags {
	var given Flags
	flag.StringVar(&given.Protocol, "protocol", "", "grpc, connect or grpc-web")
	flag.StringVar(&given.URL, "url", "", "the HTTP port")
	flag.StringVar(&given.Address, "grpc-address", "", "the gRPC port")
	flag.StringVar(&given.Key, "key", "", "the caller's secret")
	flag.StringVar(&given.CutURL, "cut-url", "", "the HTTP port behind a proxy that cuts")
	flag.StringVar(&given.CutAddress, "cut-address", "", "the gRPC port behind a proxy that cuts")
	flag.BoolVar(&given.HTTP2, "http2", false, "HTTP/2 in clear text on the HTTP port")
	flag.Parse()
	return given
}

// Call is what a case wants of one call beside the messages, and what it hears.
type Call struct {
	// Anonymous leaves the credentials out.
	Anonymous bool
	// Gzip compresses the request.
	Gzip bool
	// Metadata are the headers and trailers of a good reply, keys in lower case.
	Metadata map[string][]string
	// RequestEncoding and ReplyEncoding are how messages were compressed.
	RequestEncoding, ReplyEncoding string
}

// Unary is a method of a generated client; call may be nil.
type Unary[Q, R any] func(ctx context.Context, call *Call, request *Q) (*R, error)

// Stream is a server stream. Receive returns io.EOF at its good end.
type Stream interface {
	Receive() (*v1.StreamGenerateResponse, error)
}

// Duplex is a bidirectional stream. Receive returns io.EOF at its good end.
type Duplex[Q, R any] interface {
	Send(*Q) error
	CloseRequest() error
	Receive() (*R, error)
}

// Session carries many generations.
type Session = Duplex[v1.SessionRequest, v1.SessionResponse]

// Tensors carries the chunks of large tensors.
type Tensors = Duplex[v1.StreamInferRequest, v1.StreamInferResponse]

// Status is an error as the contract means it.
type Status struct {
	Code     codes.Code
	Message  string
	Details  []*anypb.Any
	Metadata map[string][]string
}

// Client is a library's generated clients under one face.
type Client struct {
	Generate       Unary[v1.GenerateRequest, v1.GenerateResponse]
	CancelGenerate Unary[v1.CancelGenerateRequest, v1.CancelGenerateResponse]
	Embed          Unary[v1.EmbedRequest, v1.EmbedResponse]
	Tokenize       Unary[v1.TokenizeRequest, v1.TokenizeResponse]
	ListModels     Unary[v1.ListModelsRequest, v1.ListModelsResponse]
	Infer          Unary[v1.InferRequest, v1.InferResponse]
	StreamGenerate func(context.Context, *v1.GenerateRequest) (Stream, error)
	Session        func(context.Context) (Session, error)
	StreamInfer    func(context.Context) (Tensors, error)
	Status         func(error) Status
}
